"""The rates of a recipe are those of torch's schedulers where torch has the schedule, and numbers worked out by hand elsewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from raysweep.common.typed_json import from_json, to_json
from raysweep.config.recipe import Recipe, Schedule


def rates_of_torch(kind: type[torch.optim.lr_scheduler.LRScheduler], number: int, **options: Any) -> list[float]:
    """The factors of the rate before each of `number` steps of a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = kind(optimizer, **options)
    rates = []
    for _ in range(number):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_constant_rate_never_changes() -> None:
    assert Recipe().rates(np.array([0, 0.5, 1e6])).tolist() == [1, 1, 1]


def test_the_cosine_is_torchs_and_stays_at_its_end() -> None:
    schedule = Schedule("cosine", epochs=10)
    ours = Recipe(schedule).rates(np.arange(11.0))
    assert ours.tolist() == pytest.approx(rates_of_torch(torch.optim.lr_scheduler.CosineAnnealingLR, 11, T_max=10), abs=1e-12)
    assert Recipe(schedule).rates(np.array([10.5, 25])).tolist() == [0, 0], "torch's own climbs again"


def test_the_one_cycle_is_torchs() -> None:
    ours = Recipe(Schedule("onecycle", epochs=1)).rates(np.linspace(0, 1, 101))
    theirs = rates_of_torch(torch.optim.lr_scheduler.OneCycleLR, 101, max_lr=1.0, total_steps=101, cycle_momentum=False)
    # torch rises during pct_start * total_steps - 1 of its total_steps - 1 steps, which are 29.3 of 100.
    assert ours[[0, 30, 100]].tolist() == pytest.approx([1 / 25, 1, 1 / 25 / 1e4])
    assert np.abs(ours - theirs).max() < 0.04
    assert Recipe(Schedule("onecycle", epochs=1)).rates(np.array([7.0])).tolist() == pytest.approx([4e-6])


def test_steps_are_torchs() -> None:
    ours = Recipe(Schedule("step", epochs=9, gamma=0.1)).rates(np.arange(9.0)).tolist()
    assert ours == pytest.approx(rates_of_torch(torch.optim.lr_scheduler.StepLR, 9, step_size=3, gamma=0.1))
    assert Recipe(Schedule("step", 9, step_size=4, gamma=0.5)).rates(np.array([3.99, 4, 8, 40])).tolist() == [1, 0.5, 0.25, 0.25]


def test_the_exponential_is_torchs_and_goes_on_within_an_epoch() -> None:
    recipe = Recipe(Schedule("exponential", epochs=5, gamma=0.9))
    assert recipe.rates(np.arange(6.0)).tolist() == pytest.approx(rates_of_torch(torch.optim.lr_scheduler.ExponentialLR, 6, gamma=0.9))
    assert recipe.rates(np.array([0.5, 50])).tolist() == pytest.approx([0.9**0.5, 0.9**5])


def test_a_warm_up_is_linear_and_the_schedule_follows_it() -> None:
    recipe = Recipe(Schedule("cosine", epochs=6), warmup_epochs=2)
    assert recipe.rates(np.array([0, 0.5, 1, 2, 4, 6, 7])).tolist() == pytest.approx([0, 0.25, 0.5, 1, 0.5, 0, 0])
    assert Recipe(warmup_epochs=0.5).rates(np.array([0, 0.25, 0.5, 9])).tolist() == [0, 0.5, 1, 1]
    assert Recipe(Schedule("exponential", 3, gamma=0.5), 1).rates(np.array([0.5, 1, 2, 9])).tolist() == [0.5, 1, 0.5, 0.25]


@pytest.mark.parametrize("name", ["constant", "cosine", "onecycle", "step", "exponential"])
def test_a_rate_depends_on_nothing_but_the_progress(name: Any) -> None:
    recipe = Recipe(Schedule(name, epochs=4, gamma=0.5), warmup_epochs=0 if name == "onecycle" else 1.5)
    epochs = np.linspace(0, 5, 41)
    together = recipe.rates(epochs)
    assert together.tolist() == [recipe.rates(np.array([epoch]))[0] for epoch in epochs]
    assert together.min() >= 0
    assert together.max() <= 1
    assert all(map(math.isfinite, together))


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (Recipe(), ""),
        (Recipe(Schedule("cosine", 10), label_smoothing=0.1), "schedule cosine (epochs 10), label_smoothing 0.1"),
        (
            Recipe(augment=("flip", {"crop": {"padding": 2}}, "cutout"), precision="bf16"),
            "precision bf16, augment flip and crop 2 and cutout 8",
        ),
        (Recipe(Schedule("step", 9, 3, 0.5), clip_grad_norm=1), "schedule step (epochs 9, step_size 3, gamma 0.5), clip_grad_norm 1"),
    ],
)
def test_a_recipe_as_text_has_what_differs_from_the_defaults(recipe: Recipe, text: str) -> None:
    assert str(recipe) == text


def test_the_values_of_a_configuration_replace_those_of_the_sweep() -> None:
    recipe = Recipe(Schedule("step", 9, gamma=0.1), warmup_epochs=1)
    changed = recipe.with_values({"label_smoothing": 0.2, "schedule": {"gamma": 0.5}})
    assert changed == Recipe(Schedule("step", 9, gamma=0.5), warmup_epochs=1, label_smoothing=0.2)
    assert recipe.with_values({}) == recipe == from_json(Recipe, to_json(recipe))
