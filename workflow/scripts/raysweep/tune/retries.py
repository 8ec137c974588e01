"""This module finds the cause of a trial's failure, and decides whether the failure counts and whether the trial is tried again."""

from __future__ import annotations

import re
from dataclasses import dataclass

import ray
from ray.tune.experiment import Trial as TuneTrial

from raysweep.common.errors import is_full_disk, logger
from raysweep.common.files import disk_error
from raysweep.record.file import Record
from raysweep.tune.faults import FirstFault
from raysweep.tune.gpu_share import GpuShare, gpus_of
from raysweep.tune.hung_trials import RunningTrials

# Maximum number of failures of one trial that do not count. The limit ends a sweep in which a trial crashes every node on which the trial runs.
MAX_FORGIVEN = 10
# Ray's error message for a task or an actor that a trial starts, and that asks for CPUs or GPUs beyond those of the trial. Seen in Ray 2.53 and 2.60.
_STARTED_IN_TRIAL = re.compile(r"No trial resources are available for launching the (task|actor) `([^`]*)`")


def cause_of(error_text: str) -> str:
    """Return the reason why a trial died, as one line, from the text of Ray's error."""
    text = error_text.strip()
    if "running low on memory" in text or "OutOfMemoryError: Task was killed" in text:
        return "killed: the node was running out of memory"
    if detail := re.search(r"Worker exit detail: (.*)", text):
        return f"its process died: {detail[1].split('. ')[0]}"
    if "actor died" in text or "ActorDied" in text or "actor is dead" in text:
        return "its process died"
    if started := _STARTED_IN_TRIAL.search(text):
        kind, name = started.groups()
        return (
            f"the function starts the Ray {kind} {name}, but the trial reserves no such CPUs and GPUs beside those of the function. Reserve them with"
            f" trial_resources.workers, or write num_cpus=0 and no num_gpus for the {kind}, and let trial_resources.cpu count its CPUs too"
        )
    # The text of the exception follows the last indented line of the traceback. This text may have several lines.
    lines: list[str] = []
    for line in reversed(text.splitlines()):
        if line.startswith((" ", "\t")):
            break
        lines.insert(0, line.strip())
    return " ".join(" ".join(lines).split())[:300] or "it died without a word"


def is_lost_node(error: BaseException | None) -> bool:
    """Return whether a trial failed because its node died or because the connection to the node was lost."""
    if isinstance(error, ray.exceptions.ActorUnavailableError):  # Ray raises this error before Ray knows that the node is dead
        return True
    died = r"node (has died|was terminated|is dead)|node failure|raylet (has )?died"
    return isinstance(error, ray.exceptions.RayActorError) and re.search(died, str(error), re.IGNORECASE) is not None


def is_full_gpu(error_text: str) -> bool:
    """Return whether the text of an error contains a message of PyTorch that the GPU has too little free memory."""
    return re.search(r"torch\.OutOfMemoryError|(CUDA|HIP|XPU)( error:)? out of memory", error_text) is not None


@dataclass(frozen=True)
class Diagnosis:
    """Describes the cause of a trial's failure, and whether the cause lies outside the trial."""

    cause: str
    is_crowded: bool = False  # whether the other trials on the same GPU left too little memory for the trial
    is_lost: bool = False  # whether the trial's node, or the engine that trained the trial with other trials, was lost


class RetryPolicy:
    """Decides whether a failure counts and whether the trial is tried again. A trial may fail `max_failures` times in all sessions together.

    A failure does not count if the trial did not cause the failure, that is, if the trial's node or engine was lost, or if other trials filled the GPU. After a
    full GPU the share of a GPU for each trial is doubled, so that fewer trials share a GPU. A full disk ends the sweep.

    This class replaces Tune's own policy, which counts a lost node as a failure of the trial and forgets the failures of earlier sessions.
    """

    def __init__(
        self, record: Record, faults: FirstFault, running: RunningTrials, gpu_share: GpuShare, *, max_failures: int, has_engines: bool
    ) -> None:
        self.record, self.faults, self.running, self.gpu_share = record, faults, running, gpu_share
        self.max_failures, self.has_engines = max_failures, has_engines
        self.retried: set[str] = set()  # ids of trials that failed and are to be tried again

    def judge(self, trial: TuneTrial, error: BaseException | None) -> None:
        """Record the failure of a trial, and decide whether the trial is tried again."""
        text, trial_id, gpus = str(error), trial.trial_id, gpus_of(trial)
        logger.debug("trial %s failed:\n%s", trial_id, text)
        self.running.note_event()
        if self.faults.fault is None and is_full_disk(text):
            self.faults.note(disk_error(self.record.path.parent))  # if another disk is full, only the trial fails
        diagnosis = self._diagnose(trial_id, error, gpus)
        forgiven = sum(not failure.counted for failure in self.record.sweep.trials[trial_id].failures)
        is_counted = not (diagnosis.is_crowded or diagnosis.is_lost) or forgiven >= MAX_FORGIVEN

        def write() -> None:
            self.record.write("failure", trial=trial_id, error=diagnosis.cause, counted=is_counted)
            if diagnosis.is_crowded:
                self.gpu_share.double(gpus)

        self.faults.guard(write)
        if not is_counted or self.record.sweep.trials[trial_id].num_failures <= self.max_failures:
            self.retried.add(trial_id)
        else:
            self.retried.discard(trial_id)

    def _diagnose(self, trial_id: str, error: BaseException | None, gpus: float) -> Diagnosis:
        text = str(error)
        is_crowded = is_full_gpu(text) and 0 < gpus < 1 and not self.has_engines
        if reason := self.running.take_kill_reason(trial_id):
            return Diagnosis(reason, is_crowded)
        if self.has_engines and isinstance(error, ray.exceptions.RayActorError):
            return Diagnosis("the process in which it trained with others ended", is_crowded, is_lost=True)
        if is_lost_node(error):
            return Diagnosis("its node was lost, or the way to it", is_crowded, is_lost=True)
        return Diagnosis(cause_of(text), is_crowded)

    def is_retried(self, trial_id: str) -> bool:
        """Return whether the trial has failed and is to be tried again."""
        return trial_id in self.retried

    def note_report(self, trial_id: str) -> None:
        """Record that a trial has reported, so that an earlier failure no longer leads to a retry."""
        self.retried.discard(trial_id)
