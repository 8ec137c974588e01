from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from raysweep.common.seeds import epoch_order
from raysweep.models.lenet import LeNet
from raysweep.training.spec import TrainingSpec
from raysweep.training.trainer import MODEL_FILE, Trainer, normalized, select_device

CPU = torch.device("cpu")


class Small(nn.Module):
    """Has dropout, whose random state has to survive a break."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.hidden, self.drop, self.out = nn.Linear(12, width), nn.Dropout(0.5), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(F.relu(self.hidden(x.flatten(1)))))


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (30, 3, 2, 2), dtype=np.uint8)), torch.from_numpy(generator.integers(0, 10, 30))


def trainer(config: dict[str, object], optimizer: str = "sgd", seed: int = 1, model: type[nn.Module] = Small) -> Trainer:
    return Trainer(model, config, TrainingSpec("cross_entropy", optimizer, order_seed=0), seed=seed, device=CPU)


def weights(of: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in of.model.parameters()])


def test_lenet_is_the_published_one() -> None:
    assert sum(p.numel() for p in LeNet().parameters()) == 62_006
    assert LeNet()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pixels_become_minus_one_to_one() -> None:
    assert normalized(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_a_gpu_that_pytorch_cannot_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device(needs_gpu=False) == CPU
    with pytest.raises(RuntimeError, match=r"cannot use the GPU that this process was given: see env\.torch_backend"):
        select_device(needs_gpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device(needs_gpu=False) == torch.device("cuda")


@pytest.mark.parametrize("batch_size", [1, 7, 30, 100])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}), ("adam", {"betas": [0.8, 0.9]}), ("adamw", {"weight_decay": 0.1})],
)
def test_an_epoch_is_what_a_plain_loop_computes(
    data: tuple[torch.Tensor, torch.Tensor], batch_size: int, optimizer: str, settings: dict[str, object]
) -> None:
    class Plain(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(F.relu(self.hidden(x.flatten(1))))

    ours = trainer({"lr": 0.05, "batch_size": batch_size, **settings}, optimizer, model=Plain)
    ours.train_epoch(*data, epoch=3)

    torch.manual_seed(1)
    model = Plain()
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer](
        model.parameters(), lr=0.05, **settings
    )
    order = epoch_order(0, 3, 30)
    for images, labels in DataLoader(TensorDataset(data[0][order], data[1][order]), batch_size=batch_size):
        theirs.zero_grad()
        F.cross_entropy(model((images / 255 - 0.5) / 0.5), labels).backward()
        theirs.step()
    torch.testing.assert_close(weights(ours), torch.cat([p.detach().flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-5)


def test_evaluation_counts_all_images_and_leaves_the_model_as_it_is(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours = trainer({"lr": 0.1, "batch_size": 4})
    before = weights(ours)
    metrics = ours.evaluate(*data)
    ours.model.eval()
    outputs = ours.model(normalized(data[0]))
    assert metrics["accuracy"] == pytest.approx((outputs.argmax(1) == data[1]).double().mean().item())
    assert metrics["loss"] == pytest.approx(F.cross_entropy(outputs, data[1]).item(), rel=1e-5)
    assert torch.equal(weights(ours), before)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_going_on_from_a_checkpoint_is_as_if_there_had_been_no_break(
    data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, optimizer: str
) -> None:
    config = {"lr": 0.05, "batch_size": 7} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    whole = trainer(config, optimizer)
    for epoch in (1, 2, 3):
        whole.train_epoch(*data, epoch)

    broken = trainer(config, optimizer)
    broken.train_epoch(*data, 1)
    broken.save(tmp_path, 1)
    torch.manual_seed(12345)  # another process has drawn other numbers since
    resumed = trainer(config, optimizer, seed=99)
    assert resumed.load(tmp_path) == 1
    for epoch in (2, 3):
        resumed.train_epoch(*data, epoch)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_seed_decides_the_first_weights_and_the_constructor_gets_the_other_keys() -> None:
    config = {"lr": 0.1, "batch_size": 4, "width": 6}
    assert torch.equal(weights(trainer(config, seed=5)), weights(trainer(config, seed=5)))
    assert not torch.equal(weights(trainer(config, seed=5)), weights(trainer(config, seed=6)))
    assert trainer(config).model.hidden.out_features == 6


def test_a_checkpoint_holds_no_pickled_code(data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    trainer({"lr": 0.1, "batch_size": 4}).save(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [MODEL_FILE, "training_state.pt"]

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "written"),))

    torch.save({"epoch": 1, "optimizer": Evil(), "rng": torch.get_rng_state()}, tmp_path / "training_state.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        trainer({"lr": 0.1, "batch_size": 4}).load(tmp_path)
    assert not (tmp_path / "written").exists()
