from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import config, lines, sweep
from raysweep.common.errors import ConfigError
from raysweep.config.load import validated
from raysweep.config.schema import load_schema, with_defaults


def test_all_mistakes_are_reported_in_the_order_of_the_config(root: Path) -> None:
    given = {
        "sweeps": {
            "b": sweep(num_samples=0, model="nets.py:Net", allocation={"nodes": 1, "min_nodes": 3}, fuse="maybe"),
            "a": sweep(metric="f1", search_space={"lr": {"uniform": [2, 1]}, "batch_size": {"choice": []}}, scheduler="ahsa"),
            "c": sweep(),
        },
        "datasets": {"synthetic": {"seed": -1}},
        "env": {"torch_backend": "cuda", "requirements": "none.in"},
        "state_dir": "results/state",
    }
    assert [line.partition(": ")[0] for line in lines(root, given)] == [
        "sweeps.b.model",
        "sweeps.b.num_samples",
        "sweeps.b.allocation.min_nodes",
        "sweeps.b.fuse",
        "sweeps.a.search_space.lr.uniform",
        "sweeps.a.search_space.batch_size.choice",
        "sweeps.a.metric",
        "sweeps.a.scheduler.name",
        "datasets.synthetic.seed",
        "env.torch_backend",
        "env.requirements",
        "state_dir",
    ]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_sample": 5, "points_to_evaluate": [{}, {}]}, "num_sample"),  # and not: 2 points are too many
        ({"metrik": "accuracy", "metric": None}, "metrik"),  # and not: metric is missing
        ({"cpus_per_node": 4, "trial_resources": {"cpu": 2}}, "cpus_per_node"),  # and not: a trial does not fit a node
        ({"allocation": {"cpus_pernode": 4}, "trial_resources": {"cpu": 2}}, "allocation.cpus_pernode"),
        ({"search_space": {"lr": {"uniform": [1, 0]}, "batch_size": 1}, "points_to_evaluate": [{"lr": 0.5}]}, "search_space.lr.uniform"),
        ({"scheduler": {"name": "asha", "grace_period": 0}, "search_algorithm": {"name": "optuna"}}, "scheduler.grace_period"),
        ({"mode": "maximum", "metric": "loss"}, "mode"),
        ({"search_space": {"lr": "x", "batch_size": 1}, "points_to_evaluate": [{"lr": 0.1}]}, "search_space.lr"),
        ({"model": 5, "optimizer": "adam", "search_space": {"x": 1}}, "model"),
        ({"trial_resources": {"gpu": "some"}, "scheduler": "hyperband"}, "trial_resources.gpu"),
        ({"search_algorithm": "bayes", "scheduler": "pbt"}, "search_algorithm.name"),
    ],
)
def test_a_mistake_has_no_second_line_for_what_follows_from_it(root: Path, changes: dict[str, Any], key: str) -> None:
    [line] = lines(root, config(**changes))
    assert line.startswith(f"sweeps.s.{key}: ")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dataset": {"synthetic": {}}}, "dataset"),  # instead of datasets
        ({"datasets": {"a/b": {}}}, "datasets.a/b"),
        ({"datasets": 5}, "datasets"),
        ({"env": {"requirement": "own.in"}, "ray": {"dashboard": True}}, "env.requirement"),
        ({"env": {"requirements": 5}, "ray": {"dashboard": True}}, "env.requirements"),
        ({"env": {"container": "none.sif", "wheels": "download", "python": "python3"}, "results_dir": "a,b"}, "env.container"),
        ({"results_dir": 5, "state_dir": "5/a"}, "results_dir"),
        ({"results_dir": "-a", "state_dir": "./-a"}, "results_dir"),
    ],
)
def test_nor_has_a_mistake_outside_the_sweeps(root: Path, changes: dict[str, Any], key: str) -> None:
    given = config() | changes
    if "dataset" in changes:
        del given["datasets"]
    [line] = lines(root, given)
    assert line.startswith(f"{key}: ")


def test_the_keys_of_a_search_space_are_checked_each(root: Path) -> None:
    space = {"lr": {"uniform": [1, 0]}, "net": {"a": [1], "b": {"one_of": [{"c": []}, {"d": {}}]}}}
    assert [line.partition(": ")[0].removeprefix("sweeps.s.search_space.") for line in lines(root, config(search_space=space))] == [
        "lr.uniform",
        "net.a",
        "net.b.one_of.0.c",
        "net.b.one_of.1.d",
        "batch_size",
    ]


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each part of a config."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths_in(inner, (*path, key))


WHOLE = with_defaults(
    config(scheduler={"name": "asha"}, points_to_evaluate=[{"lr": 0.01}], stop={"loss": {"at_most": 1}}, env={}), load_schema()
)
WRONG = [None, 5, -1, 1.5, "x", "", "-x", "{a}", "a\n", "a:b", [], {}, [1], ["x", {}], {1: 2}, {"x": {}}, True, float("nan"), {"name": [1]}]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(list(paths_in(WHOLE))), st.sampled_from(WRONG)), min_size=1, max_size=3))
def test_wrong_values_at_any_place_are_lines_and_no_traceback(root: Path, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    changed = copy.deepcopy(WHOLE)
    for path, value in sorted(
        changes, key=lambda change: -len(change[0])
    ):  # inner parts first, because a change may remove the inner parts
        part = changed
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
    refusal: tuple[str, ...] = ()
    try:
        validated(changed, [], root)
    except ConfigError as error:
        refusal = error.lines
    assert all(line.startswith("--config: ") for line in refusal)
    assert len(set(refusal)) == len(refusal)
