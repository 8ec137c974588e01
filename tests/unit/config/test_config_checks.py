from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs import assert_refused, check, config, ids, lines, refusal


def test_the_dashboard_with_what_it_needs(root: Path) -> None:
    given = config() | {"ray": {"dashboard": True}, "env": {"requirements": "workflow/envs/dashboard.in"}}
    assert check(root, given)["ray"]["dashboard"]


@pytest.mark.parametrize(
    ("folders", "key"),
    [
        ({"state_dir": "results/state"}, "state_dir"),
        ({"results_dir": "state"}, "results_dir"),
        ({"resources_dir": "results/../state/x"}, "resources_dir"),
        ({"results_dir": "."}, "state_dir"),
        ({"results_dir": "a", "state_dir": "a"}, "results_dir"),
    ],
)
def test_folders_in_one_another(root: Path, folders: dict[str, str], key: str) -> None:
    text = refusal(root, config() | folders)
    assert f" {key}: " in text
    assert text.endswith("Allowed: three folders, none in another")


def test_folders_whose_names_only_begin_alike(root: Path) -> None:
    assert check(root, config() | {"state_dir": "results2"})["state_dir"] == "results2"


def test_a_requirements_file_that_cannot_be_read_is_one_line(root: Path) -> None:
    (root / "own.in").write_text("ray[default] ==\n")
    (root / "own.txt").write_text("")
    given = config(mlflow="local") | {"env": {"requirements": "own.in"}, "ray": {"dashboard": True}}
    [line] = lines(root, given)
    assert line.startswith(f"env.requirements: {root}/own.in: 'ray[default] ==' is not a requirement: ")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        config() | {"ray": {"dashboard": True}},
        "ray.dashboard: True is not allowed: env.requirements, workflow/envs/node.in, does not list ray[default]. Name workflow/envs/dashboard.in",
    ),
    (config() | {"env": {"cache_dir": "/tmp", "wheels": "none"}}, "env.cache_dir: '/tmp' is not allowed with wheels: none"),
]


@pytest.mark.parametrize(("given", "expected"), MISTAKES, ids=ids(MISTAKES))
def test_mistakes(root: Path, given: dict[str, Any], expected: str) -> None:
    assert_refused(root, given, expected)
