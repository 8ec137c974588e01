from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from configs import check, config, num_trials, own
from raysweep.common.capacity import WorkerResources
from raysweep.common.typed_json import to_json
from raysweep.config.model import (
    AllocationConfig,
    Config,
    ConfirmConfig,
    EndWhenConfig,
    EnvConfig,
    NoBetterFor,
    RayConfig,
    SweepConfig,
    TrialResourcesConfig,
)
from raysweep.config.schema import load_schema, required_keys
from raysweep.data.manifest import DatasetSpec


def test_num_trials_counts_the_grid_once_for_each_sample(root: Path) -> None:
    space = {"lr": {"grid": [0.1, 0.2, 0.3]}, "batch_size": {"grid": [2, 4]}, "momentum": {"uniform": [0, 1]}}
    assert num_trials(check(root, config(search_space=space, num_samples=5))) == 30
    assert num_trials(check(root, config(num_samples=5))) == 5


def fields_of(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass with their defaults, as JSON; MISSING stands for no default."""
    return {field.name: to_json(field.default) for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("kind", "path", "fields_without_a_key"),
    [
        (Config, (), set()),
        (DatasetSpec, ("datasets", "*"), {"name"}),
        (EnvConfig, ("env",), set()),
        (RayConfig, ("ray",), set()),
        (SweepConfig, ("sweeps", "*"), set()),
        (TrialResourcesConfig, ("sweeps", "*", "trial_resources"), set()),
        (WorkerResources, ("sweeps", "*", "trial_resources", "workers"), set()),
        (AllocationConfig, ("sweeps", "*", "allocation"), set()),
        (ConfirmConfig, ("sweeps", "*", "confirm"), set()),
        (EndWhenConfig, ("sweeps", "*", "end_when"), set()),
        (NoBetterFor, ("sweeps", "*", "end_when", "no_better_for"), set()),
    ],
)
def test_a_dataclass_has_the_keys_and_the_defaults_of_the_schema(kind: type, path: tuple[str, ...], fields_without_a_key: set[str]) -> None:
    schema = load_schema()
    for key in path:
        schema = schema["additionalProperties"] if key == "*" else schema["properties"][key]
    fields, keys = fields_of(kind), schema["properties"]
    assert fields.keys() - fields_without_a_key == keys.keys()
    for key, below in keys.items():
        # A validated config has all defaults. A dataclass that has one as well, for tests and older records, must have the same.
        is_given = key in required_keys(schema) or "default" in below
        assert fields[key] in ((dataclasses.MISSING, below.get("default")) if is_given else (None,)), key


@pytest.mark.parametrize(("workers", "nodes"), [(None, 1), ({"num": 3}, 1), ({"num": 2, "cpu": 3}, 2), ({"num": 3, "cpu": 4}, 4)])
def test_a_confirmation_has_the_nodes_that_one_trial_needs(root: Path, workers: dict[str, int] | None, nodes: int) -> None:
    given = own(trial_resources={"workers": workers}, allocation={"nodes": 5, "cpus_per_node": 4})
    assert Config.of(check(root, given)).sweeps["s"].confirm_nodes == nodes


def test_a_config_is_the_same_as_json(root: Path) -> None:
    whole = check(root, {**own(scheduler="asha"), "datasets": {"d": {"source": "synthetic"}}})
    typed = Config.of(whole)
    assert typed.datasets["d"] == DatasetSpec("d", "synthetic", "upstream", 0.1, 0)
    assert to_json(typed.sweeps["s"]) == whole["sweeps"]["s"]
    assert to_json(typed.env) == whole["env"]
