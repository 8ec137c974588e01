from __future__ import annotations

import logging
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.capacity import TrialResources
from raysweep.common.errors import START_AGAIN, RaysweepError, WorldError
from raysweep.common.machine import NodeSize
from raysweep.record.events import SessionHeader
from raysweep.record.file import Record
from raysweep.slurm.allocation import SlurmJob
from raysweep.tune.population import HandOvers
from raysweep.tune.samplers import ListSampler
from raysweep.tune.schedulers import ShieldedScheduler, make_scheduler
from raysweep.tune.session import Session, end_session, finish_whole, open_session
from raysweep.tune.slots.fusion import Fusion
from raysweep.tune.slots.manager import RunningEngine, SlotManager
from raysweep.tune.slots.messages import EngineSetup
from records import new_record, two_hours_of_two_gpus
from tune_parts import begin, end_of_trial, report
from typed import search_job, sweep_config


def test_what_was_cut_off_after_its_last_report_is_finished(tmp_path: Path) -> None:
    with Record(tmp_path / "record.jsonl") as record:
        record.write("session", sweep={}, host="h", pid=1, nodes=[])
        for number, scores in enumerate(([0.1, 0.2, 0.3], [0.1, 0.9], [0.1], [])):
            trial = f"{number:05d}"
            record.write("trial", trial=trial, index=number, repeat=0, seed=0, config={})
            record.write("start", trial=trial, node="n", from_epoch=0)
            for epoch, score in enumerate(scores, start=1):
                record.write("result", trial=trial, epoch=epoch, metrics={"score": score}, time_s=1.0, node="n")
        finish_whole(record, "score", 3, {"score": {"at_least": 0.9}})
        assert [trial.status for trial in record.sweep.trials.values()] == ["TERMINATED", "TERMINATED", "RUNNING", "RUNNING"]


NODES = (NodeSize("n", 8, 1),)


def session(folder: Path, fusion: Fusion | None = None, max_concurrent: int | None = None) -> Session:
    sweep = sweep_config(trainable="user.py:train", max_concurrent=max_concurrent)
    return Session(
        search_job(folder, sweep),
        NODES,
        new_record(folder),
        {},
        ListSampler([]),
        folder,
        fusion,
        resources=TrialResources(1, 0.5),
        measures_gpu=False,
    )


def test_tune_may_pickle_a_scheduler_that_asks_a_session_with_slots(tmp_path: Path) -> None:
    slots = SlotManager(lambda: None, EngineSetup(slots=2, prepared_for=0, unfolds=False, whole_batches=False))
    fused = session(tmp_path, Fusion(slots, 1.0))
    scheduler = make_scheduler(fused.sweep, fused.record, {}, HandOvers())
    assert pickle.loads(pickle.dumps(ShieldedScheduler(scheduler, fused.record, end_of_trial())))


def test_capacity_follows_the_share_of_a_gpu_and_the_config(tmp_path: Path) -> None:
    assert [session(tmp_path).capacity(NODES, share) for share in (0.5, 0.25, 1.0)] == [2, 4, 1]
    assert session(tmp_path, max_concurrent=3).capacity(NODES, 0.25) == 3
    slots = SlotManager(lambda: None, EngineSetup(slots=2, prepared_for=0, unfolds=False, whole_batches=False))
    slots.engines += [RunningEngine(None, None, None)] * 3
    assert session(tmp_path, Fusion(slots, 1.0)).capacity(NODES, 1.0) == 6


SLURM = SlurmJob("7", None, 0)


def opened(
    folder: Path,
    *,
    epochs: tuple[int, ...] = (),
    max_epochs: int = 2,
    resubmit: int = 0,
    gpu: float | str = 0,
    jobs: int = 1,
    **given: Any,
) -> Session:
    """Return a session on a record whose trials have come to these epochs, of `max_epochs`."""
    sweep = sweep_config(
        trainable="user.py:train", max_epochs=max_epochs, allocation={"resubmit": resubmit, "jobs": jobs}, trial_resources={"gpu": gpu}
    )
    job = search_job(folder, sweep, total=2, slurm_job=SLURM, **given)
    if not (folder / "record.jsonl").exists():
        with new_record(folder) as record:
            for number, last in enumerate(epochs):
                begin(record, f"{number:05d}")
                for epoch in range(1, last + 1):
                    report(record, f"{number:05d}", epoch, 0.5)
                    path = folder / f"tune-old/{number:05d}/{epoch}"
                    path.mkdir(parents=True)
                    record.write("checkpoint", trial=f"{number:05d}", epoch=epoch, path=str(path.relative_to(folder)))
    return open_session(job, (NodeSize("n", 8, 2),), Record(folder / "record.jsonl"))


def outcomes(session: Session) -> list[str | None]:
    return [each.outcome for each in session.record.sweep.sessions]


def test_a_session_finishes_and_keeps_what_the_last_one_left(tmp_path: Path) -> None:
    session = opened(tmp_path, epochs=(2, 1))
    assert [trial.status for trial in session.record.sweep.trials.values()] == ["TERMINATED", "PENDING"]
    assert session.record.sweep.trials["00001"].checkpoints == {1: "checkpoints/00001-epoch1"}
    assert (tmp_path / "checkpoints/00000-epoch2").is_dir()
    assert list(tmp_path.glob("tune-*")) == [session.scratch]
    assert session.fusion is None


@pytest.mark.parametrize(("epochs", "is_finished"), [(1, True), (2, False)])
def test_a_trial_that_got_no_better_before_an_interruption_is_finished(tmp_path: Path, epochs: int, is_finished: bool) -> None:
    with new_record(tmp_path, metric="score", mode="min") as record:
        begin(record, "00000")
        for epoch, score in enumerate((0.5, 0.4, 0.4), start=1):
            report(record, "00000", epoch, score)
        finish_whole(record, "score", 9, {"no_better_for": {"epochs": epochs, "min_delta": 0}})
        assert record.sweep.trials["00000"].finished is is_finished
        assert record.sweep.trials["00000"].reason == ("stop" if is_finished else None)


def test_a_session_is_complete_when_the_best_value_no_longer_becomes_better(tmp_path: Path) -> None:
    sweep = sweep_config(trainable="user.py:train", max_epochs=2, end_when={"no_better_for": {"configurations": 2}})
    with new_record(tmp_path, metric="score") as record:
        for number, score in enumerate((0.5, 0.4, 0.4)):
            begin(record, f"{number:05d}")
            report(record, f"{number:05d}", 2, score)
    job = search_job(tmp_path, sweep, total=50, header=SessionHeader(metric="score"))
    session = open_session(job, (NodeSize("n", 8, 2),), Record(tmp_path / "record.jsonl"))
    end_session(session, is_time_over=False)
    assert outcomes(session)[-1] == "complete"


def test_a_session_is_complete_when_the_gpu_hours_are_used_up(tmp_path: Path) -> None:
    for gpu_hours, outcome in ((4, "complete"), (5, "incomplete")):
        folder = tmp_path / str(gpu_hours)
        two_hours_of_two_gpus(folder)
        sweep = sweep_config(trainable="user.py:train", max_gpu_hours=gpu_hours, allocation={"gpus_per_node": 2})
        session = open_session(search_job(folder, sweep, total=50), (NodeSize("n", 8, 2),), Record(folder / "record.jsonl"))
        with nullcontext() if outcome == "complete" else pytest.raises(RaysweepError, match="1 of 50 trials done"):
            end_session(session, is_time_over=False)
        assert outcomes(session)[-1] == outcome


def test_a_session_with_more_epochs_goes_on_with_finished_trials_and_one_with_fewer_finishes_trials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path, epochs=(2, 1))
    with caplog.at_level(logging.INFO, "raysweep"):
        longer = opened(tmp_path, max_epochs=3)
    assert "s: 1 finished trial goes on to epoch 3, with at most 1 epoch of training." in caplog.messages
    assert [trial.status for trial in longer.record.sweep.trials.values()] == ["PENDING", "PENDING"]
    assert [trial.latest_checkpoint(tmp_path) for trial in longer.record.sweep.trials.values()] == [2, 1]
    shorter = opened(tmp_path, max_epochs=1)
    trials = shorter.record.sweep.trials.values()
    assert [(trial.status, trial.reason, trial.epochs) for trial in trials] == [
        ("TERMINATED", "max_epochs", 2),
        ("TERMINATED", "max_epochs", 1),
    ]


def test_the_first_resources_follow_from_what_was_measured(tmp_path: Path) -> None:
    session = opened(tmp_path, trial_resources=TrialResources(1, 1), gpu="auto")
    assert (session.resources, session.measures_gpu) == (TrialResources(1, 1.0), True)
    session.record.write("gpu_share", gpu=0.25, used_mb=1, total_mb=9)
    session = opened(tmp_path, trial_resources=TrialResources(1, 1), gpu="auto")
    assert (session.resources, session.measures_gpu) == (TrialResources(1, 0.25), False)
    session = opened(tmp_path, trial_resources=TrialResources(1, 0.1))
    assert session.resources == TrialResources(1, 0.1), "the config may set a lower share than was measured"
    session.record.write("gpu_share", gpu=0.5)
    session = opened(tmp_path, trial_resources=TrialResources(1, 0.1))
    assert session.resources == TrialResources(1, 0.5), "no lower share than one that was too small"
    assert opened(tmp_path, trial_resources=TrialResources(1, 0)).resources == TrialResources(1, 0)


def test_a_session_that_leaves_nothing_is_complete(tmp_path: Path) -> None:
    session = opened(tmp_path, epochs=(2, 2))
    end_session(session, is_time_over=False)
    assert outcomes(session)[-1] == "complete"
    assert not session.scratch.exists()


def test_a_session_that_leaves_trials_is_resumable(tmp_path: Path) -> None:
    session = opened(tmp_path, epochs=(2, 1))
    with pytest.raises(RaysweepError, match=r"s: incomplete, resumable: 1 of 2 trials done. Run the same command again"):
        end_session(session, is_time_over=False)
    assert outcomes(session)[-1] == "incomplete"


def test_a_job_whose_time_is_nearly_up_is_started_again_as_often_as_the_config_says(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            end_session(opened(tmp_path, epochs=(2, 1), resubmit=2), is_time_over=True)
        assert ended.value.code == START_AGAIN
    session = opened(tmp_path, resubmit=2)
    with pytest.raises(WorldError, match=r"the time of job 7 is nearly up \(it was started again 2 times, as often as allocation.resubmit"):
        end_session(session, is_time_over=True)
    assert outcomes(session)[1:] == ["started again", "started again", "out of time"]


def test_another_job_goes_on_only_if_this_job_is_one_of_several(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        end_session(opened(tmp_path, epochs=(2, 1), jobs=2, early_ends=tmp_path / "early-ends"), is_time_over=True)
    assert ended.value.code == START_AGAIN
    with pytest.raises(WorldError, match=r"with allocation.resubmit it would go on by itself"):
        end_session(opened(tmp_path, jobs=2), is_time_over=True)


def test_without_resubmit_a_line_names_it(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"with allocation.resubmit it would go on by itself"):
        end_session(opened(tmp_path, epochs=(2, 1)), is_time_over=True)
