"""Configs for tests: a sweep that is allowed as it is, with changes, and the refusal of a config with mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.common.errors import ConfigError
from raysweep.config.load import validated
from raysweep.config.model import Config
from raysweep.config.schema import PATH_TO_SCHEMA

ROOT = PATH_TO_SCHEMA.parents[1]


def num_trials(validated_config: dict[str, Any]) -> int:
    """Return how many trials the only sweep of a config has."""
    [sweep] = Config.of(validated_config).sweeps.values()
    return sweep.num_trials


def sweep(**changes: Any) -> dict[str, Any]:
    """A sweep that is allowed as it is; a change to None leaves the key out."""
    whole = {
        "dataset": "synthetic",
        "model": "raysweep.models.lenet:LeNet",
        "search_space": {"lr": {"loguniform": ["1e-4", "1e-1"]}, "batch_size": {"choice": [2, 4]}},
        "metric": "accuracy",
    } | changes
    return {key: value for key, value in whole.items() if value is not None}


def config(**changes: Any) -> dict[str, Any]:
    return {"datasets": {"synthetic": {"source": "synthetic"}}, "sweeps": {"s": sweep(**changes)}}


def own(**changes: Any) -> dict[str, Any]:
    """A sweep of a trainable."""
    return config(**({"model": None, "dataset": None, "trainable": "train.py:train"} | changes))


def check(root: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Validate `given`, as read from the file config.yaml."""
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return validated(yaml.safe_load(path.read_text()), [path], root)


def lines(root: Path, given: dict[str, Any]) -> list[str]:
    """Return the lines of a refusal, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        check(root, given)
    return [line.removeprefix("config.yaml: ") for line in caught.value.lines]


def refusal(root: Path, given: dict[str, Any]) -> str:
    """Return the only line of a refusal."""
    with pytest.raises(ConfigError) as caught:
        check(root, given)
    [line] = caught.value.lines
    return line


def assert_refused(root: Path, given: dict[str, Any], expected: str) -> None:
    """Check that a config has one mistake, and that the line holds `expected`."""
    line = refusal(root, given)
    assert line.startswith("config.yaml: ")
    assert expected in line


def ids(mistakes: list[tuple[dict[str, Any], str]]) -> list[str]:
    """Return a name for each case: the key, and a number."""
    return [f"{text.partition(' ')[0]}{number}" for number, (_, text) in enumerate(mistakes)]
