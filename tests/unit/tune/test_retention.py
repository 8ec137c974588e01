from __future__ import annotations

from pathlib import Path
from typing import Literal

from raysweep.config.model import Objective
from raysweep.record.file import Record
from raysweep.tune.retention import Retention, find_checkpoints, keep_checkpoints, kept_path
from records import new_record
from tune_parts import begin, report


class Keeping:
    """A record with checkpoints, and the part that deletes them."""

    def __init__(self, folder: Path, max_kept: int | Literal["all"] = 1, repeats: int = 1) -> None:
        self.folder, self.record = folder, new_record(folder, repeats=repeats)
        self.retention = Retention(self.record, folder / "tune-x", metric="score", mode="max", keep_checkpoints=max_kept)

    def report(self, trial_id: str, epoch: int, score: float, checkpoint: bool = True) -> None:
        report(self.record, trial_id, epoch, score)
        if checkpoint:
            add_checkpoint(self.record, trial_id, epoch)
            self.retention.note_checkpoint(self.record.sweep.trials[trial_id])

    def finish(self, trial_id: str, status: str = "TERMINATED") -> None:
        self.record.write("finish", trial=trial_id, status=status, error=None)
        self.retention.note_finish(self.record.sweep.trials[trial_id])

    def left(self) -> list[str]:
        return sorted(f"{path.parent.name}/{path.name}" for path in self.folder.glob("tune-x/*/*"))


def add_checkpoint(record: Record, trial_id: str, epoch: int) -> None:
    path = record.path.parent / "tune-x" / trial_id / str(epoch)
    path.mkdir(parents=True)
    record.write("checkpoint", trial=trial_id, epoch=epoch, path=f"tune-x/{trial_id}/{epoch}")


def test_a_running_trial_keeps_its_best_and_its_latest_checkpoint(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    begin(keeping.record, "00000")
    for epoch, score in ((1, 0.1), (2, 0.9), (3, 0.9), (4, 0.3), (5, 0.2)):
        keeping.report("00000", epoch, score)
    assert keeping.left() == ["00000/2", "00000/5"]  # of equal values the earliest
    assert set(keeping.record.sweep.trials["00000"].checkpoints) == {2, 5}


def test_only_the_best_trials_keep_a_checkpoint_when_they_are_finished(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, max_kept=2)
    for number, score in enumerate((0.5, 0.1, 0.7, 0.6)):
        trial_id = f"{number:05d}"
        begin(keeping.record, trial_id)
        keeping.report(trial_id, 1, score)
        keeping.report(trial_id, 2, score / 2)
        keeping.finish(trial_id)
    assert keeping.left() == ["00002/1", "00003/1"]
    assert sorted(path.name for path in (tmp_path / "tune-x").iterdir()) == ["00002", "00003"]


def test_with_all_each_trial_that_can_go_on_keeps_its_best_and_its_last_checkpoint(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, max_kept="all")
    for number, score in enumerate((0.5, 0.1)):
        trial_id = f"{number:05d}"
        begin(keeping.record, trial_id)
        for epoch in (1, 2, 3):
            keeping.report(trial_id, epoch, score / epoch)
        keeping.finish(trial_id)
    begin(keeping.record, "00002")
    keeping.report("00002", 1, 0.9)
    keeping.finish("00002", "ERROR")
    assert keeping.left() == ["00000/1", "00000/3", "00001/1", "00001/3"]


def test_what_earlier_sessions_kept_is_surpassed_too(tmp_path: Path) -> None:
    first = Keeping(tmp_path)
    begin(first.record, "00000")
    first.report("00000", 1, 0.5)
    first.finish("00000")
    first.record.close()
    with Record(tmp_path / "record.jsonl") as record:
        retention = Retention(record, tmp_path / "tune-x", metric="score", mode="max", keep_checkpoints=1)
        begin(record, "00001")
        report(record, "00001", 1, 0.9)
        add_checkpoint(record, "00001", 1)
        record.write("finish", trial="00001", status="TERMINATED", error=None)
        retention.note_finish(record.sweep.trials["00001"])
    assert first.left() == ["00001/1"]


def test_without_a_checkpoint_of_the_best_epoch_the_best_of_those_that_have_one_is_kept(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    begin(keeping.record, "00000")
    keeping.report("00000", 1, 0.9, checkpoint=False)
    for epoch, score in ((2, 0.5), (3, 0.7), (4, 0.6)):
        keeping.report("00000", epoch, score)
    assert keeping.left() == ["00000/3", "00000/4"]
    keeping.finish("00000")
    assert keeping.left() == ["00000/3"]


def test_without_a_checkpoint_in_the_constraint_the_best_outside_of_it_is_kept(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    begin(keeping.record, "00000")
    keeping.record.sweep.set_goal({"score": {"at_most": 0.3}})
    keeping.report("00000", 1, 0.2, checkpoint=False)
    for epoch, score in ((2, 0.7), (3, 0.5)):
        keeping.report("00000", epoch, score)
    keeping.finish("00000")
    assert keeping.left() == ["00000/2"]


def test_a_trial_that_failed_keeps_nothing(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    begin(keeping.record, "00000")
    keeping.report("00000", 1, 0.5)
    keeping.finish("00000", "ERROR")
    assert keeping.left() == []
    assert not (tmp_path / "tune-x/00000").exists()


def test_a_trial_that_is_ahead_of_its_group_keeps_what_may_become_the_best_epoch(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, repeats=2)
    for repeat in range(2):
        trial_id = f"00000-{repeat}"
        keeping.record.write("trial", trial=trial_id, index=0, repeat=repeat, seed=repeat, config={})
        keeping.record.write("start", trial=trial_id, node="n", from_epoch=0)
    for epoch, score in ((1, 0.9), (2, 0.5), (3, 0.1)):
        keeping.report("00000-0", epoch, score)
    assert keeping.left() == ["00000-0/1", "00000-0/2", "00000-0/3"]
    for epoch, score in ((1, 0.1), (2, 0.9), (3, 0.1)):
        keeping.report("00000-1", epoch, score)
    for repeat in range(2):
        keeping.finish(f"00000-{repeat}")
    assert keeping.left() == ["00000-0/2", "00000-1/2"], "of the mean the second epoch is the best"


def test_what_is_kept_outlives_the_scratch_of_its_session(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    begin(keeping.record, "00000")
    keeping.report("00000", 1, 0.5)
    (tmp_path / "tune-y/leftover").mkdir(parents=True)
    keep_checkpoints(keeping.record)
    assert not list(tmp_path.glob("tune-*"))
    assert keeping.record.sweep.trials["00000"].checkpoints == {1: kept_path("00000", 1)}
    assert (tmp_path / kept_path("00000", 1)).is_dir()


def test_a_checkpoint_that_was_moved_before_a_kill_is_found_and_one_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    record = new_record(tmp_path)
    begin(record, "00000")
    for epoch in (1, 2, 3):
        report(record, "00000", epoch, 0.5)
        add_checkpoint(record, "00000", epoch)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "tune-x/00000/2").rename(tmp_path / kept_path("00000", 2))
    (tmp_path / "tune-x/00000/3").rmdir()
    find_checkpoints(record)
    assert record.sweep.trials["00000"].checkpoints == {1: "tune-x/00000/1", 2: kept_path("00000", 2)}


def test_the_front_of_several_objectives_keeps_checkpoints(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    keeping.record.sweep.set_goal({}, (Objective("score", "max"), Objective("size", "min")))
    for number, (score, size) in enumerate(((0.5, 5), (0.9, 9), (0.4, 6), (0.1, 1))):
        trial_id = f"{number:05d}"
        begin(keeping.record, trial_id)
        for epoch in (1, 2):
            metrics = {"score": score, "size": size}
            keeping.record.write("result", trial=trial_id, epoch=epoch, metrics=metrics, time_s=1.0, node="n")
            add_checkpoint(keeping.record, trial_id, epoch)
        keeping.finish(trial_id)
    assert keeping.left() == ["00000/2", "00001/2", "00003/2"]


def test_a_running_trial_does_not_keep_a_finished_one_from_the_front(tmp_path: Path) -> None:
    """The running trial dominates now, but its last report is the one that will count."""
    keeping = Keeping(tmp_path)
    keeping.record.sweep.set_goal({}, (Objective("score", "max"), Objective("size", "min")))
    for trial_id, score in (("00000", 0.9), ("00001", 0.5), ("00002", 0.4)):
        begin(keeping.record, trial_id)
        keeping.record.write("result", trial=trial_id, epoch=1, metrics={"score": score, "size": 5}, time_s=1.0, node="n")
        add_checkpoint(keeping.record, trial_id, 1)
    keeping.finish("00001")
    keeping.finish("00002")
    assert keeping.left() == ["00000/1", "00001/1"]


def test_a_confirmation_keeps_nothing_of_a_front(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, max_kept=0)
    keeping.record.sweep.set_goal({}, (Objective("score", "max"), Objective("size", "min")))
    begin(keeping.record, "00000")
    keeping.record.write("result", trial="00000", epoch=1, metrics={"score": 1, "size": 5}, time_s=1.0, node="n")
    add_checkpoint(keeping.record, "00000", 1)
    keeping.finish("00000")
    assert keeping.left() == []
