from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs import config, lines, sweep


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
        ({"metrics": "accuracy", "metric": None}, "metrics"),  # and not: metric is missing
        ({"cpus_per_node": 4, "trial_resources": {"cpu": 2}}, "cpus_per_node"),  # and not: a trial does not fit a node
        ({"allocation": {"cpus_pernode": 4}, "trial_resources": {"cpu": 2}}, "allocation.cpus_pernode"),
        ({"search_space": {"lr": {"uniform": [1, 0]}, "batch_size": 1}, "points_to_evaluate": [{"lr": 0.5}]}, "search_space.lr.uniform"),
        ({"scheduler": {"name": "asha", "grace_period": 0}, "search_algorithm": {"name": "optuna"}}, "scheduler.grace_period"),
        ({"mode": "maximum", "metric": "loss"}, "mode"),
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
