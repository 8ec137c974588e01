"""Each two settings are refused together with a reason, or are allowed together."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs import check, config, lines, own
from raysweep.config.model import Config, SweepConfig
from raysweep.config.pairs import PAIRS_OF_DATASET, PAIRS_OF_SWEEP, SETTINGS_OF_DATASET, SETTINGS_OF_SWEEP
from raysweep.training.preparation import DataFacts
from raysweep.training.spec import TrainingSpec
from raysweep.training.trainer import Trainer

TABLE = {"source": "own.csv", "target": "y", "task": "classification"}
# Maps each setting to what a config writes for the setting, in the sweep, or at `data` in the data set.
EXAMPLES: dict[str, dict[str, Any]] = {
    "model": {"model": "raysweep.models.lenet:LeNet"},
    "trainable": {},
    "loss": {"loss": "cross_entropy"},
    "optimizer": {"optimizer": "adam"},
    "training": {"training": {"clip_grad_norm": 1}},
    "metrics": {"metrics": ["f1"]},
    "fuse": {"fuse": "on"},
    "pausing scheduler": {"scheduler": {"name": "hyperband"}},
    "pbt": {"scheduler": {"name": "pbt"}},
    "patience of trials": {"stop": {"no_better_for": 2}},
    "end_when": {"end_when": {"no_better_for": 2}},
    "pbt of lr": {"scheduler": {"name": "pbt"}},
    "repeats": {"repeats": 2},
    "other repeats": {"repeats": 3},
    "folds": {"data": {"source": "synthetic", "validation": {"folds": 5}}},
    "learning algorithm": {"search_algorithm": "optuna"},
    "searcher of Ray Tune": {"search_algorithm": "a.library:Searcher"},
    "cmaes": {
        "search_algorithm": {"name": "optuna", "sampler": "cmaes"},
        "search_space": {"lr": {"uniform": [0.01, 0.1]}, "batch_size": {"randint": [2, 5]}},
    },
    "scheduler": {"scheduler": "median"},
    "top": {"confirm": {"top": 2}},
    "objectives": {"objectives": [{"metric": "accuracy"}, {"metric": "loss", "mode": "min"}]},
    "plain algorithm": {"search_algorithm": "random"},
    "warm_start": {"warm_start": "old.csv", "search_algorithm": "optuna"},
    "max_concurrent": {"max_concurrent": 2},
    "gpu auto": {"trial_resources": {"gpu": "auto"}, "allocation": {"gpus_per_node": 1}},
    "workers": {"trial_resources": {"workers": {"num": 2}}, "allocation": {"cpus_per_node": 8}},
    "other loss": {"loss": "nll_loss"},
    "label_smoothing": {"training": {"label_smoothing": 0.1}},
    "class_weights": {"training": {"class_weights": "balanced"}},
    "mixup": {"training": {"augment": ["mixup"]}},
    "augment": {"training": {"augment": ["flip"]}},
    "table": {"data": TABLE},
    "warmup_epochs": {"training": {"warmup_epochs": 1}},
    "onecycle": {"training": {"schedule": {"name": "onecycle"}}},
    "schedule": {"training": {"schedule": {"name": "cosine"}}},
    "fixed-rate optimizer": {"optimizer": "rprop"},
}
# Maps a setting to the other settings that its example has too.
IMPLIED = {
    "warm_start": {"learning algorithm"},
    "pausing scheduler": {"scheduler"},
    "pbt": {"pausing scheduler", "pbt of lr", "scheduler"},
    "pbt of lr": {"pausing scheduler", "pbt", "scheduler"},
    "searcher of Ray Tune": {"learning algorithm"},
    "cmaes": {"learning algorithm"},
    "repeats": {"other repeats"},
    "other repeats": {"repeats"},
    "fixed-rate optimizer": {"optimizer"},
    "other loss": {"loss"},
    "mixup": {"augment", "training"},
    "onecycle": {"schedule", "training"},
    **{name: {"training"} for name in ("label_smoothing", "class_weights", "warmup_epochs", "schedule", "augment")},
}
KEYS_OF_MODEL = {"loss", "optimizer", "training", "metrics"}
EXAMPLES_OF_DATASET: dict[str, dict[str, Any]] = {
    "images": {"source": "synthetic"},
    "group": {"group": "g"},
    "time": {"split": "time"},
    "folds": {"validation": {"folds": 3}},
    "other fraction": {"validation_fraction": 0.3},
}


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any] | None:
    """Return both maps as one, or None where the maps have different values at one key."""
    result = dict(first)
    for key, value in second.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            value = merged(result[key], value)
        if value is None or (key in result and not isinstance(value, dict) and result[key] != value):
            return None
        result[key] = value
    return result


def given(changes: dict[str, Any], is_trainable: bool) -> dict[str, Any]:
    """Return the config of a sweep with `changes`."""
    sweep = {key: value for key, value in changes.items() if key != "data"}
    made = (own if is_trainable else config)(num_samples=4, max_epochs=4, **sweep)
    if sweep.get("search_algorithm") == EXAMPLES["cmaes"]["search_algorithm"]:
        made["env"] = {"requirements": "workflow/envs/samplers.in"}
    if "data" in changes:
        made["datasets"] = {"synthetic": changes["data"]}
        made["sweeps"]["s"]["dataset"] = "synthetic"
    return made


def refused(pairs: Any, names: set[str]) -> list[str]:
    """Return the last words of each message that the settings `names` must get."""
    return [pair.message.rpartition("}")[2] for pair in pairs if {pair.first, pair.second} <= names]


def test_each_setting_has_an_example() -> None:
    assert EXAMPLES.keys() == SETTINGS_OF_SWEEP.keys()
    assert EXAMPLES_OF_DATASET.keys() == SETTINGS_OF_DATASET.keys()
    for pairs, settings in ((PAIRS_OF_SWEEP, SETTINGS_OF_SWEEP), (PAIRS_OF_DATASET, SETTINGS_OF_DATASET)):
        assert {name for pair in pairs for name in (pair.first, pair.second)} == settings.keys(), "no setting is there for nothing"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLES)
def test_a_setting_of_a_sweep_is_refused_or_allowed_with_each_later_setting(root: Path, number: int) -> None:
    (root / "own.csv").write_text("y,x\n")
    first, *others = list(EXAMPLES)[number:]
    for second in others:
        names = {first, second} | IMPLIED.get(first, set()) | IMPLIED.get(second, set())
        changes = merged(EXAMPLES[first], EXAMPLES[second])
        is_trainable = bool(names & {"trainable", "workers"}) and "model" not in names
        if changes is None or {"model", "trainable"} <= names or ("workers" in names and names & KEYS_OF_MODEL):
            continue  # two values at one key, or a key of a model beside workers, which are for a trainable
        names.add("trainable" if is_trainable else "model")
        if expected := refused(PAIRS_OF_SWEEP, names):
            told = lines(root, given(changes, is_trainable))
            assert all(any(words in line for line in told) for words in expected), (first, second, told)
        else:
            sweep = Config.of(check(root, given(changes, is_trainable))).sweeps["s"]
            if not is_trainable:
                assert math.isfinite(trained(sweep)), (first, second)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def trained(sweep: SweepConfig) -> float:
    """Train a model for an epoch with the settings of a sweep, and return the loss."""
    images = torch.arange(6 * 48).remainder(251).to(torch.uint8).view(6, 3, 4, 4)
    facts = DataFacts((3, 4, 4), 3)
    trainer = Trainer(Tiny, {"lr": 0.01, "batch_size": 4}, TrainingSpec.of(sweep), seed=0, device=torch.device("cpu"), facts=facts)
    return trainer.train_epoch(images, torch.arange(6) % 3, 1)


@pytest.mark.parametrize(("first", "second"), combinations(EXAMPLES_OF_DATASET, 2))
def test_two_settings_of_a_data_set_are_refused_or_allowed(root: Path, first: str, second: str) -> None:
    (root / "own.csv").write_text("y,x,g\n")
    source = {} if "images" in (first, second) else TABLE
    made = config() | {"datasets": {"synthetic": {**source, **EXAMPLES_OF_DATASET[first], **EXAMPLES_OF_DATASET[second]}}}
    if expected := refused(PAIRS_OF_DATASET, {first, second}):
        [line] = lines(root, made)
        assert expected[0] in line
    else:
        check(root, made)
