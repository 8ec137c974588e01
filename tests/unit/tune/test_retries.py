from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError

from raysweep.tune.faults import FirstFault
from raysweep.tune.gpu_share import GpuShare
from raysweep.tune.hung_trials import RunningTrials
from raysweep.tune.retries import MAX_FORGIVEN, RetryPolicy, cause_of, is_full_gpu, is_lost_node
from records import new_record
from tune_parts import Clock, begin

REFUSED_BY_RAY = """Traceback (most recent call last):
  File "train.py", line 12, in train
RuntimeError: No trial resources are available for launching the {} `{}`. To resolve this, specify the Tune option:

>  resources_per_trial=tune.PlacementGroupFactory(
>    [{{'CPU': 1.0}}] + [{{'CPU': 1.0}}] * N
>  )
"""
STARTED_IN_TRIAL = (
    "the function starts the Ray {0} {1}, but the trial reserves no such CPUs and GPUs beside those of the function. Reserve them with"
    " trial_resources.workers, or write num_cpus=0 and no num_gpus for the {0}, and let trial_resources.cpu count its CPUs too"
)
FULL_GPU = RuntimeError("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "it died without a word"),
        ('\x1b[36mray::f()\x1b[39m (pid=1)\n  File "x.py", line 1, in f\n    raise E\nValueError: two\nlines', "ValueError: two lines"),
        ("The actor died unexpectedly before finishing this task.", "its process died"),
        ("… Worker exit detail: Worker exits with code 3. End of file. Some causes", "its process died: Worker exits with code 3"),
        (REFUSED_BY_RAY.format("task", "train.part"), STARTED_IN_TRIAL.format("task", "train.part")),
        (REFUSED_BY_RAY.format("actor", "a.Net.__init__"), STARTED_IN_TRIAL.format("actor", "a.Net.__init__")),
        ("RuntimeError: No trial resources are left", "RuntimeError: No trial resources are left"),
        ("Task was killed due to the node running low on memory.\nMore", "killed: the node was running out of memory"),
    ],
)
def test_a_cause_is_one_line(text: str, cause: str) -> None:
    assert cause_of(text) == cause


class Judging:
    """A policy with its record."""

    def __init__(self, folder: Path, *, max_failures: int = 0, gpu_share: float = 0, has_engines: bool = False) -> None:
        self.record, self.faults, self.clock = new_record(folder), FirstFault(), Clock()
        self.running = RunningTrials(10, lambda actor: None, self.clock)
        self.share = GpuShare(self.record, gpu_share)
        self.policy = RetryPolicy(self.record, self.faults, self.running, self.share, max_failures=max_failures, has_engines=has_engines)

    def begin(self, trial_id: str = "00000") -> Any:
        trial = begin(self.record, trial_id, self.share.share)
        self.running.begin(trial)
        return trial

    def judge(self, trial: Any, error: BaseException) -> bool:
        self.policy.judge(trial, error)
        return self.policy.is_retried(trial.trial_id)

    def failures(self, trial: Any) -> list[tuple[str, bool]]:
        return [(failure.error, failure.counted) for failure in self.record.sweep.trials[trial.trial_id].failures]


def lost_node() -> RayActorError:
    error = RayActorError()
    error.error_msg = "The actor died because its node has died. Node Id: 12ab"
    return error


def test_a_trial_is_tried_again_until_it_has_failed_too_often_over_all_sessions(tmp_path: Path) -> None:
    judging = Judging(tmp_path, max_failures=2)
    trial = judging.begin()
    judging.record.write("failure", trial="00000", error="of an earlier session", counted=True)
    assert judging.judge(trial, ValueError("two"))
    assert not judging.judge(trial, ValueError("three"))
    assert judging.failures(trial) == [("of an earlier session", True), ("two", True), ("three", True)]


def test_a_report_ends_the_failure_before_it(tmp_path: Path) -> None:
    judging = Judging(tmp_path, max_failures=1)
    trial = judging.begin()
    assert judging.judge(trial, ValueError("one"))
    judging.policy.note_report("00000")
    assert not judging.policy.is_retried("00000")


def test_a_lost_node_is_not_counted_against_its_trials(tmp_path: Path) -> None:
    judging = Judging(tmp_path)
    trial = judging.begin()
    assert is_lost_node(lost_node())
    assert judging.judge(trial, lost_node())
    assert judging.record.sweep.trials["00000"].num_failures == 0
    assert not judging.judge(trial, ValueError("my node has died"))


def test_a_trial_that_takes_down_node_after_node_is_given_up(tmp_path: Path) -> None:
    judging = Judging(tmp_path)
    trial = judging.begin()
    assert [judging.judge(trial, lost_node()) for _ in range(MAX_FORGIVEN + 1)] == [True] * MAX_FORGIVEN + [False]


def test_a_connection_that_is_lost_counts_as_a_lost_node(tmp_path: Path) -> None:
    assert is_lost_node(ActorUnavailableError("no answer", b"0" * 16))
    assert not is_lost_node(RayActorError())
    assert not is_lost_node(ValueError("node has died"))


@pytest.mark.parametrize(("has_engines", "is_retried"), [(True, True), (False, False)])
def test_the_end_of_an_engine_is_not_counted_against_its_trials(tmp_path: Path, has_engines: bool, is_retried: bool) -> None:
    judging = Judging(tmp_path, has_engines=has_engines)
    trial = judging.begin()
    assert judging.judge(trial, RayActorError()) is is_retried
    if has_engines:
        assert judging.failures(trial) == [("the process in which it trained with others ended", False)]


@pytest.mark.parametrize("has_engines", [True, False])
def test_a_trial_that_was_killed_because_it_hung_has_failed(tmp_path: Path, has_engines: bool) -> None:
    judging = Judging(tmp_path, has_engines=has_engines)
    trial = judging.begin()
    judging.clock.now_s += 11
    judging.running.kill_hung()
    assert not judging.judge(trial, lost_node())
    assert judging.failures(trial) == [("it reported nothing for 10s (trial_timeout), so it was ended", True)]


def test_trials_that_fill_a_gpu_get_more_of_it_until_they_have_it_for_themselves(tmp_path: Path) -> None:
    judging = Judging(tmp_path, gpu_share=0.3)
    trials = [judging.begin(f"{number:05d}") for number in range(2)]
    for trial in trials:  # they fail in the same moment
        assert judging.judge(trial, FULL_GPU)
    for trial in trials:
        judging.share.apply(trial)
        assert trial.placement_group_factory.required_resources["GPU"] == 0.6
    assert judging.judge(trials[0], FULL_GPU)
    assert judging.share.share == 1.0 == judging.record.sweep.gpu_share
    judging.share.apply(trials[0])
    assert not judging.judge(trials[0], FULL_GPU), "alone on its GPU it is to blame"


@pytest.mark.parametrize(
    "words", ["CUDA out of memory", "CUDA error: out of memory", "HIP out of memory", "HIP error: out of memory", "XPU out of memory"]
)
def test_the_words_of_pytorch_for_a_full_gpu_of_each_vendor(words: str) -> None:
    assert is_full_gpu(f"RuntimeError: {words}. Tried to allocate 20 GiB")
    assert not is_full_gpu("RuntimeError: DataLoader worker is out of memory")


def test_a_full_disk_that_is_not_the_records_concerns_the_trial_alone(tmp_path: Path) -> None:
    judging = Judging(tmp_path)
    trial = judging.begin()
    assert not judging.judge(trial, ValueError("[Errno 28] No space left on device: '/tmp/x'"))
    assert judging.faults.fault is None


def test_a_disk_on_which_the_record_cannot_grow_ends_the_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    judging = Judging(folder)
    trial = judging.begin()
    folder.rename(tmp_path / "elsewhere")  # a write to the folder now fails, as it does on a full disk
    judging.judge(trial, ValueError("[Errno 28] No space left on device"))
    assert isinstance(judging.faults.fault, OSError)
    assert judging.failures(trial) == [], "nothing is written after a fault"
