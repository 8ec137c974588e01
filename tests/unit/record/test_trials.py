from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.errors import RaysweepError
from raysweep.record.events import ScheduleStep, SessionHeader
from raysweep.record.file import Record, read_sweep
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Result, Trial
from records import begin_repeat, new_record, report_scores, two_trials

TRIAL = {"trial": "00000", "index": 0, "repeat": 0, "seed": 7, "config": {"lr": 0.1, "name": "größer"}}
START = {"trial": "00000", "node": "n1", "from_epoch": 0}
FINISH = {"trial": "00000", "status": "TERMINATED", "error": None}


def result(epoch: int, value: float, trial: str = "00000") -> dict[str, Any]:
    return {"trial": trial, "epoch": epoch, "metrics": {"accuracy": value}, "time_s": float(epoch), "node": "n2"}


def sweep_of(*events: tuple[str, dict[str, Any]]) -> Sweep:
    sweep = Sweep()
    for number, (kind, values) in enumerate((("session", {"sweep": {}}), *events)):
        sweep.apply({"event": kind, "at": f"2026-03-01T09:00:{number:02d}.000Z", **values})
    return sweep


def test_an_event_of_a_later_version_is_refused() -> None:
    with pytest.raises(RaysweepError, match="an event 'teleport' that this version does not know"):
        sweep_of(("trial", TRIAL), ("teleport", {"trial": "00000"}))


def test_what_ran_when_the_driver_broke_off_is_to_be_run_again() -> None:
    other = TRIAL | {"trial": "00001", "index": 1}
    sweep = sweep_of(("trial", TRIAL), ("start", START), ("trial", other), ("start", START | {"trial": "00001"}), ("finish", FINISH))
    assert [trial.status for trial in sweep.trials.values()] == ["TERMINATED", "RUNNING"]
    sweep.apply({"event": "session", "at": "2026-03-01T10:00:00.000Z", "sweep": {"name": "anew"}})
    assert [trial.status for trial in sweep.trials.values()] == ["TERMINATED", "PENDING"]
    assert sweep.header == SessionHeader(name="anew")


def test_a_new_attempt_forgets_what_lies_behind_its_checkpoint() -> None:
    sweep = sweep_of(
        ("trial", TRIAL),
        ("start", START),
        *(("result", result(epoch, epoch / 10)) for epoch in (1, 2, 3)),
        *(("checkpoint", {"trial": "00000", "epoch": epoch, "path": f"c/{epoch}"}) for epoch in (1, 2, 3)),
        ("start", START | {"from_epoch": 2, "node": "n3"}),
    )
    trial = sweep.trials["00000"]
    assert [r.epoch for r in trial.results] == [1, 2]
    assert trial.checkpoints == {1: "c/1", 2: "c/2"}
    assert [attempt.from_epoch for attempt in trial.attempts] == [0, 2]
    assert trial.node == "n3"
    assert trial.status == "RUNNING"
    assert trial.started == "2026-03-01T09:00:02.000Z", "of its first attempt"


def test_time_between_sessions_is_not_used() -> None:
    sweep = Sweep()
    for at, kind in (("09:00:00", "session"), ("09:01:00", "session_end"), ("15:00:00", "session"), ("15:00:30", "session_end")):
        sweep.apply({"event": kind, "at": f"2026-03-01T{at}.000Z", "sweep": {}, "outcome": "x"})
    assert sweep.used_s == 90


def trial(*values: float | None, trial_id: str = "0", status: Any = "TERMINATED") -> Trial:
    """A trial that reported these values, one an epoch; None is a report without the metric."""
    results = [Result(epoch, {} if v is None else {"m": v}, 1.0, "") for epoch, v in enumerate(values, start=1)]
    return Trial(trial_id, 0, 0, 0, {}, status=status, results=results)


@pytest.mark.parametrize(
    ("values", "mode", "epoch"),
    [
        ((0.1, 0.3, 0.2), "max", 2),
        ((0.1, 0.3, 0.2), "min", 1),
        ((0.3, 0.3), "max", 1),
        ((0.3, 0.3), "min", 1),
        ((math.nan, 0.3, math.inf, None), "max", 2),
        ((-math.inf, 0.3), "min", 2),
        ((0.0, -0.0), "max", 1),
    ],
)
def test_the_best_epoch_of_a_trial(values: tuple[float | None, ...], mode: Any, epoch: int) -> None:
    best = trial(*values).best("m", mode)
    assert best is not None
    assert best.epoch == epoch


@pytest.mark.parametrize("values", [(), (math.nan,), (None, math.inf)])
def test_a_trial_without_a_usable_value_has_no_best(values: tuple[float | None, ...]) -> None:
    assert trial(*values).best("m", "max") is None
    assert Sweep(trials={"0": trial(*values)}).best_trial("m", "max") is None


def test_the_best_trial_is_the_first_of_equal_ones_and_never_one_that_failed() -> None:
    trials = [
        trial(0.9, trial_id="0", status="ERROR"),
        trial(0.5, trial_id="3"),
        trial(0.1, 0.5, trial_id="1"),
        trial(0.5, trial_id="2", status="STOPPED"),
        trial(trial_id="4"),
    ]
    for order in (trials, trials[::-1]):
        best = Sweep(trials={t.trial_id: t for t in order}).best_trial("m", "max")
        assert best is not None
        assert (best[0].trial_id, best[1].epoch) == ("1", 2)
    assert Sweep(trials={"0": trials[0]}).best_trial("m", "max") is None


def test_a_trial_that_has_not_begun() -> None:
    waiting = Trial("0", 0, 0, 0, {})
    assert (waiting.status, waiting.finished, waiting.started, waiting.node, waiting.epochs, waiting.time_s) == (
        "PENDING",
        False,
        None,
        None,
        0,
        0.0,
    )


def test_a_trial_that_waits_for_others_is_to_be_run_again() -> None:
    sweep = sweep_of(("trial", TRIAL), ("start", START), ("result", result(1, 0.5)), ("pause", {"trial": "00000"}))
    assert sweep.trials["00000"].status == "PENDING"
    assert sweep.trials["00000"].epochs == 1


def test_a_group_has_the_means_of_the_epochs_that_all_have_come_to(tmp_path: Path) -> None:
    with new_record(tmp_path, repeats=2) as record:
        first = begin_repeat(record, 0, 0)
        report_scores(record, first, 0.1, 0.9)
        group = record.sweep.groups[0]
        assert group.results == []
        assert group.status == "RUNNING"
        second = begin_repeat(record, 0, 1)
        report_scores(record, second, 0.5)
        assert [(result.epoch, result.metrics) for result in group.results] == [(1, {"score": pytest.approx(0.3), "other": 1.0})]
        report_scores(record, second, 0.1, 0.2)
        assert [result.metrics["score"] for result in group.results] == pytest.approx([0.3, 0.5])
        record.write("finish", trial=first, status="STOPPED", error=None)
        assert not group.finished
        record.write("finish", trial=second, status="TERMINATED", error=None)
        assert group.finished
        assert group.status == "STOPPED"


def test_the_best_is_the_best_mean_and_what_failed_with_one_seed_cannot_win(tmp_path: Path) -> None:
    with new_record(tmp_path, repeats=2) as record:
        scores = {(0, 0): 0.9, (0, 1): 0.1, (1, 0): 0.6, (1, 1): 0.62, (2, 0): 0.8, (2, 1): 0.8}
        for (index, repeat), score in scores.items():
            trial = begin_repeat(record, index, repeat)
            report_scores(record, trial, score)
            status = "ERROR" if (index, repeat) == (2, 1) else "TERMINATED"
            record.write("finish", trial=trial, status=status, error=None)
        found = record.sweep.best_trial("score", "max")
        assert found is not None
        assert (found[0].trial_id, found[1].metrics["score"]) == ("00001", pytest.approx(0.61))
        ranked = sorted(record.sweep.candidates, key=lambda one: one.rank("score", "max"))
        assert [one.trial_id for one in ranked] == ["00001", "00000", "00002"]


def test_the_record_keeps_by_which_configurations_weights_came_about(tmp_path: Path) -> None:
    with two_trials(tmp_path) as record:
        first, second = record.sweep.trials.values()
        best = second.best("score", "max")
        assert best is not None
        assert best.epoch == 1
        record.write("take_over", trial="00001", donor="00000", epoch=3, config={"lr": 0.5}, path="copy")
        record.write("start", trial="00001", node="n", from_epoch=3)
        assert second.config == {"lr": 0.5}
        assert second.best("score", "max") is None  # what it inherited is not its own
        assert second.epochs == 3
        record.write("result", trial="00001", epoch=4, metrics={"score": 0.7}, time_s=4.0, node="n")
        best = second.best("score", "max")
        assert best is not None
        assert best.epoch == 4
        assert second.schedule == [ScheduleStep(0, first.config), ScheduleStep(3, {"lr": 0.5})]
        record.write("take_over", trial="00000", donor="00001", epoch=4, config={"lr": 0.6}, path="copy of the copy")
        assert [step.from_epoch for step in first.schedule] == [0, 3, 4]
        again = read_sweep(record.path).trials
        assert again["00000"].schedule == first.schedule
        assert [again["00000"].config_at(epoch) for epoch in (0, 3, 4)] == [step.config for step in first.schedule]
        assert again["00001"].results == second.results
        # Where no checkpoint is left it begins as the one did from which its weights come.
        record.write("start", trial="00000", node="n", from_epoch=0)
        assert (first.config, first.schedule, first.results) == (again["00000"].config_at(0), [], [])


def test_only_reports_within_it_count(tmp_path: Path) -> None:
    with Record(tmp_path / "record.jsonl") as record:
        record.write("session", sweep={"constraint": {"size": {"at_most": 2}, "speed": {"at_least": 1}}}, host="h", pid=1, nodes=[])
        record.write("trial", trial="00000", index=0, repeat=0, seed=0, config={})
        record.write("start", trial="00000", node="n", from_epoch=0)
        for epoch, (size, speed) in enumerate(((1, 1), (2, 1), (2, 0.5), (3, 9)), start=1):
            record.write("result", trial="00000", epoch=epoch, metrics={"score": epoch, "size": size, "speed": speed}, time_s=1.0, node="n")
        trial = record.sweep.trials["00000"]
        best = trial.best("score", "max")
        assert best is not None
        assert best.epoch == 2
        record.sweep.set_goal({"unknown": {"at_most": 2}})  # what is not reported fulfils nothing
        assert trial.best("score", "max") is None
        assert trial.has_reported("score")
        record.sweep.set_goal({})
        best = trial.best("score", "max")
        assert best is not None
        assert best.epoch == 4


OBJECTIVES = [{"metric": "score", "mode": "max"}, {"metric": "size", "mode": "min"}]


def record_of_points(folder: Path, *points: tuple[float, float], **header: Any) -> Record:
    """Return a record of finished trials, which report the point (score, size) at epoch 2 and a better score at epoch 1."""
    record = new_record(folder, **{"objectives": OBJECTIVES, **header})
    for index, (score, size) in enumerate(points):
        trial = f"{index:05d}"
        record.write("trial", trial=trial, index=index, repeat=0, seed=0, config={"x": index})
        record.write("start", trial=trial, node="n", from_epoch=0)
        for epoch, value in ((1, score + 10), (2, score)):
            record.write("result", trial=trial, epoch=epoch, metrics={"score": value, "size": size}, time_s=1.0, node="n")
        record.write("finish", trial=trial, status="TERMINATED", error=None)
    return record


POINTS = ((0.9, 90), (0.8, 20), (0.5, 10), (0.7, 30), (0.9, 95))


@pytest.mark.parametrize(
    ("choose", "best"), [(None, "00000"), ("score", "00000"), ("size", "00002"), ("knee", "00001")], ids=["first", "score", "size", "knee"]
)
def test_the_best_of_several_objectives_is_chosen_from_the_front_of_the_last_reports(tmp_path: Path, choose: str | None, best: str) -> None:
    with record_of_points(tmp_path, *POINTS, choose=choose) as record:
        sweep = record.sweep
        assert [(candidate.trial_id, result.epoch) for candidate, result in sweep.front()] == [("00000", 2), ("00001", 2), ("00002", 2)]
        found = sweep.best_trial("score", "max")
        assert found is not None
        assert found[0].trial_id == best


def test_a_failed_trial_is_not_on_the_front_and_a_point_fulfils_the_constraint(tmp_path: Path) -> None:
    with record_of_points(tmp_path, *POINTS, constraint={"size": {"at_most": 50}}) as record:
        record.write("finish", trial="00001", status="ERROR", error="out of memory")
        assert [candidate.trial_id for candidate, _ in record.sweep.front()] == ["00003", "00002"]


def test_a_report_without_one_of_the_objectives_is_no_point(tmp_path: Path) -> None:
    with record_of_points(tmp_path, (0.5, 10)) as record:
        record.write("result", trial="00000", epoch=3, metrics={"score": 0.99}, time_s=1.0, node="n")
        [(_, result)] = record.sweep.front()
        assert result.epoch == 2


def test_with_one_objective_there_is_no_front(tmp_path: Path) -> None:
    with two_trials(tmp_path) as record:
        assert record.sweep.front() == []
