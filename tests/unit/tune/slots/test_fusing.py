"""Whether trials are trained together, and how many at a time, by what the config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.config.space import parse_space
from raysweep.record.record import Record
from raysweep.tune.slots.fusing import Layout, batch_sizes_of, micro_batch_size, samples_of, why_not_at_all


@pytest.mark.parametrize(
    ("batch_sizes", "size"),
    [([2, 4, 8, 16], 2), ([32], 32), ([3, 5], 3), ([6, 9], 3), ([256, 512], 64), ([1, 64], 1), ([100], 50), ([67], 64), ([8, 12], 4)],
)
def test_the_micro_batch_divides_the_batch_sizes_where_it_can(batch_sizes: list[int], size: int) -> None:
    assert micro_batch_size(batch_sizes) == size


@pytest.mark.parametrize(
    ("space", "batch_sizes"),
    [
        (32, [32]),
        ({"choice": [8, 2, 4, 2]}, [2, 4, 8]),
        ({"grid": [16]}, [16]),
        ({"randint": [2, 6]}, [2, 3, 4, 5]),
        ({"quniform": [8, 32, 8]}, [8, 16, 24, 32]),
        ({"lograndint": [1, 100_000]}, [1, 99_999]),
    ],
)
def test_batch_sizes_are_read_from_the_space(space: Any, batch_sizes: list[int]) -> None:
    assert batch_sizes_of(parse_space({"batch_size": space})) == batch_sizes


def test_samples_have_the_smallest_and_the_largest_batch() -> None:
    space = parse_space({"batch_size": {"choice": [2, 4, 8]}, "lr": {"uniform": [0, 1]}, "width": 3})
    samples = samples_of(space, 0, [2, 4, 8])
    assert [sample["batch_size"] for sample in samples] == [2, 4, 8]
    assert len({sample["lr"] for sample in samples}) == 3
    assert {sample["width"] for sample in samples} == {3}


@pytest.mark.parametrize(
    ("sweep", "space", "why"),
    [
        ({"model": "m:M"}, {"lr": {"uniform": [0, 1]}, "batch_size": 2, "width": 4}, None),
        ({"trainable": "f.py:f"}, {"lr": 1, "batch_size": 2}, "a Ray Tune function runs in a process of its own"),
        (
            {"model": "m:M"},
            {"lr": 1, "batch_size": 2, "width": {"choice": [2, 4]}, "net": {"depth": {"randint": [1, 3]}}},
            "net/depth, width of the model's constructor is searched, so models differ in form",
        ),
    ],
)
def test_what_the_config_alone_says_against_it(tmp_path: Path, sweep: dict[str, Any], space: dict[str, Any], why: str | None) -> None:
    with Record(tmp_path / "record.jsonl") as record:
        assert why_not_at_all(sweep, parse_space(space), record.sweep) == why


@pytest.mark.parametrize(
    ("changes", "nodes", "gpu", "capacity", "expected"),
    [
        ({}, [(2, 0)], 0, 2, (2, 2, 10)),
        ({"max_concurrent": 5}, [(2, 0)], 0, 2, (2, 2, 3)),
        ({"search_algorithm": {"name": "optuna"}}, [(2, 0)], 0, 2, (2, 2, 1)),
        ({}, [(8, 1), (8, 3)], 0.1, 40, (4, 3, 5)),
        ({"num": 1}, [(8, 0)], 0, 8, (1, 8, 1)),
        ({"num": 1000}, [(2, 0)], 0, 2, (2, 2, 32)),
    ],
)
def test_engines_and_seats(
    tmp_path: Path, changes: dict[str, Any], nodes: list[tuple[int, int]], gpu: float, capacity: int, expected: tuple[int, int, int]
) -> None:
    sweep = {"max_concurrent": None, "search_algorithm": {"name": "random"}} | changes
    job = {"sweep": sweep, "total": changes.get("num", 20), "trial_resources": {"cpu": 1, "gpu": gpu}}
    job["nodes"] = [{"name": f"n{number}", "cpus": cpus, "gpus": gpus} for number, (cpus, gpus) in enumerate(nodes)]
    with Record(tmp_path / "record.jsonl") as record:
        layout = Layout.of(job, record.sweep, capacity)
    assert (layout.engines, layout.engines_per_node, layout.seats) == expected


def test_unfinished_trials_of_another_form_are_not_stacked_with_new_ones(tmp_path: Path) -> None:
    space = parse_space({"lr": 1, "batch_size": 2, "width": 4})
    with Record(tmp_path / "record.jsonl") as record:
        record.write("session", sweep={}, host="h", pid=1, nodes=[])
        record.write("trial", trial="00000", index=0, repeat=0, seed=0, config={"lr": 1, "batch_size": 2, "width": 3})
        assert why_not_at_all({"model": "m:M"}, space, record.sweep) == "trials of an earlier search space have models of another form"
        record.write("finish", trial="00000", status="ERROR", error="died")
        assert why_not_at_all({"model": "m:M"}, space, record.sweep) is None
