from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.training.layers import has_batch_norm, lazy_layers, materialize, split_rows


@pytest.mark.parametrize(
    ("rows", "size", "batches"),
    [
        (1, 4, [1]),
        (4, 4, [4]),
        (5, 4, [5]),
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (3, 2, [3]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_last_row_joins_the_batch_before_it(rows: int, size: int, batches: list[int]) -> None:
    parts = split_rows(torch.arange(rows), size, joins_last_row=True)
    assert [len(part) for part in parts] == batches
    assert torch.cat(parts).tolist() == list(range(rows))


@pytest.mark.parametrize("rows", [1, 4, 5, 9, 10])
def test_else_a_last_row_is_a_batch(rows: int) -> None:
    ours, plain = split_rows(torch.arange(rows), 4, joins_last_row=False), torch.arange(rows).split(4)
    assert [part.tolist() for part in ours] == [part.tolist() for part in plain]


def test_batch_normalisation_is_seen_below_other_layers() -> None:
    assert has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LazyBatchNorm1d())))
    assert not has_batch_norm(nn.Sequential(nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), nn.LayerNorm(2)))


class Net(nn.Module):
    """Has a lazy layer that it uses in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first = nn.LazyBatchNorm1d(), nn.LazyLinear(3)
        self.only_in_training = nn.LazyLinear(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.first(self.norm(x)), training=self.training)
        return x + self.only_in_training(x) if self.training else x


def test_lazy_layers_get_their_sizes() -> None:
    net = Net()
    assert lazy_layers(net) == ["norm", "first", "only_in_training"]
    materialize(net, torch.zeros(2, 5))
    assert lazy_layers(net) == []
    assert net.training
    assert type(net.first) is nn.Linear
    assert net.first.weight.shape == (3, 5)


def test_a_first_batch_in_evaluation_mode_counts_for_no_statistics_and_draws_the_weights_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LazyBatchNorm1d(), nn.Dropout(), nn.LazyLinear(3))
    materialize(net, torch.ones(2, 5))
    assert net[0].num_batches_tracked == 0
    assert net[0].running_mean.tolist() == [0] * 5
    torch.manual_seed(0)
    assert torch.equal(net[2].weight, nn.Linear(5, 3).weight)


def test_a_lazy_layer_that_the_model_does_not_use_is_refused() -> None:
    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.LazyLinear(3)

    with pytest.raises(ValueError, match=r"^forward\(\) does not use the lazy layer spare: remove that layer from the model$"):
        materialize(Unused(), torch.zeros(2, 5))
