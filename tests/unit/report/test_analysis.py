"""What the report says of a sweep as a whole: importances, the map, rungs, and costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import to_json
from raysweep.record.gpu_use import GpuUse
from raysweep.record.sweep import Sweep
from raysweep.report.analysis import (
    MIN_TRIALS,
    at_a_time,
    cost,
    gpu_use_over_time,
    hours_at,
    importances,
    landscape,
    mean_gpu_use,
    repeated_s,
    rungs,
)
from raysweep.report.report import figures_of, write_report
from recorded import MemberJob
from reporting import made_up

ROOT = Path(__file__).resolve().parents[3]
SPACE = {"lr": {"loguniform": [1e-4, 1e-1]}, "idle": {"uniform": [5, 5.001]}, "batch_size": {"choice": [2, 4, 8]}}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_learning_rate_that_makes_the_difference_is_the_most_important(tmp_path: Path, mode: str) -> None:
    inputs = made_up(tmp_path, num_trials=60, mode=mode, search_space=SPACE)
    found = importances(inputs, inputs.keys)
    assert found[0].key.name == "lr"
    assert found[0].share > 0.7
    assert sum(one.share for one in found) == pytest.approx(1)


def test_few_trials_say_nothing_and_failed_ones_do_not_count(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=MIN_TRIALS, failed={0: "x"}, search_space=SPACE)
    assert importances(inputs, inputs.keys) == []


def test_the_map_is_best_where_the_trials_are_and_empty_where_there_are_none(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=60, search_space={"lr": {"loguniform": [1e-4, 1e-1]}, "other": {"uniform": [0, 1]}})
    lr, other = inputs.keys
    cells = landscape(inputs, lr, other)
    best, worst = max(cells, key=lambda cell: cell.value), min(cells, key=lambda cell: cell.value)
    assert best.left <= lr.position(3e-3) + 0.1
    assert best.right >= lr.position(3e-3) - 0.1
    assert (best.level, worst.level) == (0, 4)
    assert {cell.level for cell in cells} == {0, 1, 2, 3, 4}
    values = [value for _, value in inputs.ranked]
    assert min(values) <= worst.value <= best.value <= max(values)
    narrow = made_up(tmp_path / "narrow", num_trials=40, search_space={"lr": {"loguniform": [1e-4, 1e-1]}, "other": {"normal": [0, 100]}})
    assert len(landscape(narrow, *narrow.keys)) < 24 * 24


def test_a_key_that_a_part_of_the_trials_lacks_is_not_judged(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=60, search_space={**SPACE, "gone": {"uniform": [0, 1]}})
    for trial in inputs.trials[20:]:
        del trial.config["gone"]
    found = importances(inputs, inputs.keys)
    assert found[0].key.name == "lr"
    assert "gone" not in {one.key.name for one in found}


def test_where_the_best_fifth_is_no_better_than_the_worst_nothing_is_judged_and_the_page_says_so(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=60, search_space=SPACE)
    for trial in inputs.trials:
        if trial.trial_id != inputs.best.trial_id:
            trial.results[0].metrics["accuracy"] = 0.05
    assert importances(inputs, inputs.keys) == []
    write_report(inputs, tmp_path / "report.html", tmp_path / "figures", ROOT)
    assert "Which hyper-parameters mattered is not known" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_names_have_no_neighbours_on_the_map(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=120, search_space={"lr": {"loguniform": [1e-4, 1e-1]}, "act": {"choice": list("abcdef")}})
    for trial in inputs.trials:
        trial.results[0].metrics["accuracy"] = 0.9 if trial.config["act"] in "bc" else 0.1
    lr, act = inputs.keys
    by_name = {name: {round(c.value, 3) for c in landscape(inputs, lr, act) if round(c.bottom * 6) == i} for i, name in enumerate("abcdef")}
    assert by_name == {name: {0.9} if name in "bc" else {0.1} for name in "abcdef"}


def test_equal_values_are_one_level(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=40, constant=0.5, mode="min", search_space=SPACE)
    assert {cell.level for cell in landscape(inputs, inputs.keys[0], inputs.keys[2])} == {0}
    assert importances(inputs, inputs.keys) == []
    assert "contour" not in figures_of(inputs).specs


def test_rungs_count_who_reached_them_and_who_was_stopped(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=20, max_epochs=8, scheduler={"name": "asha"})
    stopped = sum(trial.status == "STOPPED" for trial in inputs.trials)
    assert 0 < stopped < 20
    assert rungs(inputs) == [(2, 20 - stopped, stopped), (8, 20 - stopped, 0)]
    assert rungs(made_up(tmp_path / "none", num_trials=20, max_epochs=8)) == []


def test_costs_are_those_of_the_allocation_and_what_was_stopped_early_is_spared(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=20, max_epochs=8, scheduler={"name": "asha"}, nodes=("a", "b"), slots=3, interruptions=1)
    found = cost(inputs)
    stopped = sum(trial.status == "STOPPED" for trial in inputs.trials)
    assert found.unit == "CPU-hours"
    assert found.hours == pytest.approx(2 * 3 * inputs.clock.total_s / 3600)
    assert (found.epochs, found.epochs_spared) == (20 * 8 - 6 * stopped, 6 * stopped)
    assert found.hours_spared == pytest.approx(found.hours * found.epochs_spared / found.epochs)
    assert hours_at(inputs, inputs.clock.session_s[0]) == pytest.approx(6 * inputs.clock.session_s[0] / 3600)
    inputs.sweep.sessions[:] = [replace(session, nodes=(NodeSize("a", 8, 2),)) for session in inputs.sweep.sessions]
    inputs = replace(inputs)  # computes everything anew
    assert (cost(inputs).unit, cost(inputs).hours) == ("GPU-hours", pytest.approx(2 * inputs.clock.total_s / 3600))


def test_trials_at_a_time_are_a_mean_over_time_and_never_exceed_the_places(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=30, slots=4)
    steps = at_a_time(inputs, 50)
    assert len(steps) == 50
    assert max(count for _, count in steps) <= 4 + 1e-9
    width = inputs.clock.total_s / 50
    assert sum(count for _, count in steps) * width == pytest.approx(sum(a.end_s - a.start_s for a in inputs.attempts))
    # Two places that are refilled at once are busy all the time, however often trials come and go.
    many = made_up(tmp_path / "many", num_trials=300, slots=2)
    assert all(count > 1.9 for _, count in at_a_time(many, 20)[:18])


def test_the_use_of_the_gpus_is_weighted_by_the_time_of_each_gpu(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=20, interruptions=1)
    first, second = inputs.sessions
    total_s = inputs.clock.total_s
    assert mean_gpu_use(inputs) is None
    assert gpu_use_over_time(inputs) == []
    lines = [
        ("7_0-a", "a", first.at, 10.0, (0.0, 40.0)),
        ("7_1-a", "a", first.at, 10.0, (80.0, 80.0)),  # another job on the same node
        # Each of these two GPUs is busy for half of the time, but at other times.
        ("7_1-a", "a", second.last_at, 10.0, (100.0, 0.0)),
        ("7_1-a", "a", second.last_at, 10.0, (0.0, 100.0)),
    ]
    inputs = replace(inputs, gpu_use=tuple(GpuUse(*line) for line in lines))
    parts = gpu_use_over_time(inputs)
    assert [part[1:] for part in parts] == [(50, 0, 80), (50, 50, 50)]
    assert 0 < parts[0].at_s < parts[1].at_s < total_s
    assert mean_gpu_use(inputs) == 50
    longer = replace(inputs, gpu_use=(*inputs.gpu_use, GpuUse("7_1-a", "a", second.last_at, 40.0, (100.0,) * 2)))
    assert mean_gpu_use(longer) == pytest.approx((50 * 80 + 100 * 80) / 160)


def test_what_was_trained_twice_is_what_came_after_the_checkpoint_from_which_a_trial_went_on(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=2, max_epochs=4)
    assert repeated_s(inputs) == 0
    sweep = Sweep()

    def tell(event: str, at: int, **values: Any) -> None:
        sweep.apply({"event": event, **values, "at": f"2026-01-01T00:{at // 60:02d}:{at % 60:02d}.000Z"})

    trial = {"trial": "00000"}
    about = inputs.sweep.sessions[0]
    session = {"sweep": to_json(about.header), "host": about.host, "nodes": to_json(about.nodes)}
    tell("session", 0, **session)
    tell("trial", 0, **trial, index=0, repeat=0, seed=0, config={"lr": 0.1})
    tell("start", 1, **trial, node="a", from_epoch=0)
    for epoch, at in ((1, 11), (2, 21), (3, 31)):
        tell("result", at, **trial, epoch=epoch, metrics={"accuracy": 0.5}, time_s=10.0 * epoch, node="a")
    tell("failure", 35, **trial, error="died", counted=True)
    tell("start", 40, **trial, node="a", from_epoch=2)  # it had gone on for 14 s after the report of epoch 2
    tell("result", 50, **trial, epoch=3, metrics={"accuracy": 0.5}, time_s=30.0, node="a")
    tell("session", 600, **session)  # the trial had been cut off; the last event of the first session came 50 s after the start
    tell("start", 601, **trial, node="a", from_epoch=2)  # all 10 s of the second attempt
    assert repeated_s(replace(inputs, sweep=sweep)) == pytest.approx(14 + 10)


def test_the_cost_of_a_sweep_of_several_jobs_follows_the_nodes_that_joined(tmp_path: Path) -> None:
    jobs = (MemberJob("12_0", "a"), MemberJob("12_1", "b", from_s=60))
    inputs = made_up(tmp_path, num_trials=20, jobs=jobs, slots=3)
    total_s = inputs.clock.total_s
    assert inputs.several_jobs == ["12_0", "12_1"]
    assert cost(inputs).hours == pytest.approx((3 * total_s + 3 * (total_s - 60)) / 3600)
    assert hours_at(inputs, 60) == pytest.approx(3 * 60 / 3600)
    assert hours_at(inputs, 90) == pytest.approx((3 * 90 + 3 * 30) / 3600)
