"""Whether trials are trained together, and how many at a time, by what the config says."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.capacity import TrialResources
from raysweep.common.machine import NodeSize
from raysweep.config.space import configuration, parse_space
from raysweep.record.events import FusionPlan, NotFused, SessionHeader
from raysweep.record.file import Record
from raysweep.tune.slots.fusion import (
    Layout,
    batch_sizes_of,
    engine_job,
    forms_of,
    micro_batch_size,
    plan_fusion,
    reason_by_config,
    sample_configs,
)
from raysweep.tune.slots.messages import Benchmark, EngineSetup
from typed import search_job, sweep_config


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
    samples = sample_configs(space, 0, [2, 4, 8], [{"width": 3}])
    assert [sample["batch_size"] for sample in samples] == [2, 4, 8]
    assert len({sample["lr"] for sample in samples}) == 3
    assert {sample["width"] for sample in samples} == {3}


@pytest.mark.parametrize(
    ("sweep", "space", "reason"),
    [
        ({"model": "m:M"}, {"lr": {"uniform": [0, 1]}, "batch_size": 2, "width": 4}, None),
        (
            {"model": "m:M", "training": {"ema_decay": 0.9}},
            {"lr": 1, "batch_size": 2, "training": {"label_smoothing": {"uniform": [0, 1]}}},
            None,
        ),
        ({"model": "m:M", "optimizer": "radam"}, {}, "the optimiser radam changes the weights of one model at a time"),
        ({"trainable": "f.py:f"}, {"lr": 1, "batch_size": 2}, "a Ray Tune function runs in a process of its own"),
        (
            {"model": "m:M"},
            {"lr": 1, "batch_size": 2, "width": {"choice": [2, 4]}, "net": {"depth": {"randint": [1, 3]}}},
            None,
        ),
        (
            {"model": "m:M"},
            {"lr": 1, "batch_size": 2, "width": {"choice": [2, 4]}, "net": {"dropout": {"uniform": [0, 1]}}},
            "net/dropout, width of the model's constructor is searched, so models have more than 8 forms",
        ),
    ],
)
def test_what_the_config_alone_says_against_it(tmp_path: Path, sweep: dict[str, Any], space: dict[str, Any], reason: str | None) -> None:
    with Record(tmp_path / "record.jsonl") as record:
        assert reason_by_config(search_job(tmp_path, sweep_config(**sweep)), parse_space(space), record.sweep) == reason


BRANCHES = {"one_of": [{"depth": {"choice": [1, 2]}}, {"width": {"quniform": [4, 9, 4]}}]}


@pytest.mark.parametrize(
    ("space", "forms"),
    [
        ({}, [{}]),
        ({"width": 4, "net": {"depth": 2}}, [{"width": 4, "net": {"depth": 2}}]),
        ({"width": {"choice": [4, 4, 8]}}, [{"width": 4}, {"width": 8}]),
        ({"depth": {"randint": [1, 4]}, "a": None}, [{"depth": depth, "a": None} for depth in (1, 2, 3)]),
        ({"drop": {"quniform": [0, 0.3, 0.1]}}, [{"drop": drop} for drop in (0.0, 0.1, 0.2, 0.3)]),
        ({"net": BRANCHES}, [{"net": {"depth": 1}}, {"net": {"depth": 2}}, {"net": {"width": 4.0}}, {"net": {"width": 8.0}}]),
        ({"a": {"randint": [0, 3]}, "b": {"grid": [1, 2, 3]}}, None),
        ({"a": {"randint": [0, 10_000]}}, None),
        ({"a": {"normal": [0, 1]}}, None),
    ],
)
def test_forms_are_all_arguments_that_the_constructor_may_get(space: dict[str, Any], forms: list[dict[str, Any]] | None) -> None:
    parsed = parse_space({"lr": {"uniform": [0, 1]}, "batch_size": {"choice": [2, 4]}, **space})
    assert forms_of(parsed) == forms
    for index in range(20) if forms else ():
        sampled = configuration(parsed, 0, index)
        assert {key: value for key, value in sampled.items() if key not in ("lr", "batch_size")} in forms


@pytest.mark.parametrize("num_forms", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_sizes", [[8], [8, 16], [8, 16, 32], [8, 16, 32, 64], [8, 16, 32, 64, 128]])
def test_samples_have_all_pairs_of_a_form_and_a_batch_size(num_forms: int, batch_sizes: list[int]) -> None:
    space = parse_space({"batch_size": {"choice": batch_sizes}, "lr": {"uniform": [0, 1]}, "width": {"randint": [0, num_forms]}})
    sizes = batch_sizes if len(batch_sizes) < 5 else [8, 32, 128]
    pairs = [(sample["width"], sample["batch_size"]) for sample in sample_configs(space, 0, batch_sizes, forms_of(space) or [])]
    assert set(pairs) == set(itertools.product(range(num_forms), sizes))
    assert len(pairs) == max(3, num_forms * len(sizes))
    first = pairs[: max(3, num_forms, len(sizes))]
    assert {width for width, _ in first} == set(range(num_forms))
    assert {size for _, size in first} == set(sizes), "as EngineJob.num_kinds says"


def test_folds_are_not_stacked(tmp_path: Path) -> None:
    job = search_job(tmp_path, sweep_config(model="m:M"), header=SessionHeader(repeats=5, has_folds=True))
    with Record(tmp_path / "record.jsonl") as record:
        reason = reason_by_config(job, parse_space({"lr": 1, "batch_size": 2}), record.sweep)
    assert reason == "each trial of a configuration trains on another fold, and the trials of a stack share their rows"


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
def test_engines_and_slots(
    tmp_path: Path, changes: dict[str, Any], nodes: list[tuple[int, int]], gpu: float, capacity: int, expected: tuple[int, int, int]
) -> None:
    given = {key: value for key, value in changes.items() if key != "num"}
    job = search_job(tmp_path, sweep_config(model="m:M", **given), total=changes.get("num", 20), trial_resources=TrialResources(1, gpu))
    sizes = [NodeSize(f"n{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(nodes)]
    with Record(tmp_path / "record.jsonl") as record:
        layout = Layout.of(job, sizes, record.sweep, capacity)
    assert (layout.engines, layout.engines_per_node, layout.slots) == expected


def test_unfinished_trials_of_another_form_are_not_stacked_with_new_ones(tmp_path: Path) -> None:
    space = parse_space({"lr": 1, "batch_size": 2, "width": 4})
    with Record(tmp_path / "record.jsonl") as record:
        record.write("session", sweep={}, host="h", pid=1, nodes=[])
        record.write("trial", trial="00000", index=0, repeat=0, seed=0, config={"lr": 1, "batch_size": 2, "width": 3})
        assert (
            reason_by_config(search_job(tmp_path, sweep_config(model="m:M")), space, record.sweep)
            == "trials of an earlier search space have models of another form"
        )
        record.write("finish", trial="00000", status="ERROR", error="died")
        assert reason_by_config(search_job(tmp_path, sweep_config(model="m:M")), space, record.sweep) is None


def test_unfinished_trials_of_one_of_the_forms_are_stacked(tmp_path: Path) -> None:
    space = parse_space({"lr": 1, "batch_size": 2, "net": {"width": {"choice": [4, 8]}, "drop": {"quniform": [0, 0.3, 0.1]}}})
    with Record(tmp_path / "record.jsonl") as record:
        record.write("session", sweep={}, host="h", pid=1, nodes=[])
        record.write("trial", trial="00000", index=0, repeat=0, seed=0, config=configuration(space, 0, 0))
        assert reason_by_config(search_job(tmp_path, sweep_config(model="m:M")), space, record.sweep) is None


LAYOUT = Layout(trials=20, threads=2, engines=3, engines_per_node=2, slots=7)


@pytest.mark.parametrize(
    ("slots", "speed_up", "needs_speed_up", "plan"),
    [
        (5, 2.5, True, FusionPlan(3, 5, 2.5, "eager", "eager")),
        (5, 1.1, False, FusionPlan(3, 5, 1.1, "eager", "eager")),
        (5, 1.123, True, NotFused("together they would be 1.1 times as fast as one by one (eager)")),
        (1, 2.5, False, NotFused("the memory does not hold two trials")),
    ],
)
def test_a_benchmark_decides(slots: int, speed_up: float, needs_speed_up: bool, plan: FusionPlan | NotFused) -> None:
    benchmark = Benchmark(EngineSetup(slots, prepared_for=0, unfolds=False, whole_batches=False), speed_up, "eager")
    assert plan_fusion(benchmark, LAYOUT, needs_speed_up) == plan


def test_a_reason_that_the_benchmark_returns_is_kept() -> None:
    assert plan_fusion(NotFused("dropout"), LAYOUT, needs_speed_up=False) == NotFused("dropout")


@pytest.mark.parametrize(("scheduler", "max_epochs", "shares"), [("none", 3, True), ("asha", 1, True), ("asha", 3, False)])
def test_engines_get_what_they_need_of_the_job(scheduler: str, max_epochs: int, shares: bool) -> None:
    sweep = sweep_config(
        model="net.py:Net",
        loss="cross_entropy",
        optimizer="adam",
        seed=4,
        metric="loss",
        max_epochs=max_epochs,
        scheduler={"name": scheduler},
        allocation={"mem_mb_per_node": 8000},
    )
    job = search_job(Path("/a"), sweep, data_dir=Path("/data"), trial_resources=TrialResources(2, 0))
    facts = engine_job(job, parse_space({"batch_size": {"choice": [4, 8]}, "lr": 1}), LAYOUT)
    assert (facts.code.target.name, facts.spec.order_seed, facts.needs_gpu, facts.share_rows) == ("Net", 4, False, shares)
    assert (facts.micro_batch_size, facts.max_slots, facts.trials) == (4, 7, 7)
    assert (facts.threads, facts.compiler_threads, facts.memory_mb) == (2, 4, 3200)
    assert [sample["batch_size"] for sample in facts.samples] == [4, 8, 8]
    assert (facts.num_forms, facts.num_batch_sizes, facts.num_kinds) == (1, 2, 3)
