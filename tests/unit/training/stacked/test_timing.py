from __future__ import annotations

import copy

import torch

from raysweep.training.stacked.timing import bytes_per_member, seconds_per_row, seconds_per_row_alone
from stacking import Dense, some_data, stacked_trainer, trainers


def test_the_trainers_that_are_timed_do_not_change() -> None:
    data, group = some_data(200), trainers(Dense, double=False)
    before = copy.deepcopy([trainer.model.state_dict() for trainer in group])
    assert seconds_per_row(stacked_trainer(2), group, *data) > 0
    assert seconds_per_row_alone(group, *data) > 0
    for trainer, state in zip(group, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in trainer.model.state_dict().items())


def test_the_memory_of_a_member_holds_its_weights_in_all_their_copies() -> None:
    [trainer] = trainers(Dense, batch_sizes=(2,))
    weights = sum(param.nbytes for param in trainer.model.parameters())
    few, many = (bytes_per_member(trainer, *some_data(400), rows) for rows in (100, 300))
    assert 10 * weights < few < many
