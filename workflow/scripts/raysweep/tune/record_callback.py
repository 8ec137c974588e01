"""Tune's events, written into the record: the one place where the record of a sweep grows."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback, Checkpoint, Stopper
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import AUTO_RESULT_KEYS, DONE, TRIAL_ID
from ray.tune.utils import flatten_dict

from raysweep.common.bounds import Bounds, any_holds
from raysweep.common.errors import WorldError, is_full_disk
from raysweep.common.files import flush_folder
from raysweep.common.numeric import is_finite_number, is_number
from raysweep.common.text import duration
from raysweep.config.model import Mode
from raysweep.record.file import Record
from raysweep.record.outputs import PartialOutputs
from raysweep.record.progress import ProgressLine
from raysweep.record.trials import Trial
from raysweep.slurm.allocation import Deadline
from raysweep.tune.samplers import Sampler
from raysweep.tune.trial import GPU_MEMORY_MB

logger = logging.getLogger("raysweep")
HAS_CHECKPOINT = "should_checkpoint"  # in a result, by Tune
NOT_METRICS = {*AUTO_RESULT_KEYS, DONE, TRIAL_ID, HAS_CHECKPOINT, "experiment_tag", "trial_id", "timesteps_total"}
START_DEADLINE_S = 900  # a worker imports torch from a slow disk, and no more
LOOK_AT_NODES_S = 5
VERIFY_LOCK_S = 5
SUSPENDED_S = 60  # between two steps of Tune, which take seconds at most
ENOUGH_BYTES = 2**20  # with so much room left it is not the disk of the state folder that is full
PACKED_SHARE = 0.9  # of a GPU's memory: later trials may take a little more than the first one
MOST_ON_A_GPU = 32  # processes; with more each gets too little of its time
MOST_FORGIVEN = 10  # failures of one trial: should it ever be what takes nodes down, the sweep still comes to its end


def numbers_of(result: dict[str, Any]) -> dict[str, float]:
    """The finite numbers among what a trial reported, without what Tune adds of its own."""
    return {
        key: value if isinstance(value, int) else float(value)
        for key, value in ((str(key), value) for key, value in result.items())
        if key not in NOT_METRICS and not key.startswith("config/") and is_finite_number(value)
    }


def unusable(result: dict[str, Any], metric: str) -> str | None:
    """Why the metric of a report cannot be compared, or None."""
    if metric not in result:
        reported = (
            ", ".join(sorted(str(key) for key in result if key not in NOT_METRICS and not str(key).startswith("config/"))) or "nothing"
        )
        return f"reported no {metric} (it reported {reported})"
    value = result[metric]
    if not is_number(value):
        return f"reported {metric} = {str(value)[:80]!r}, which is not a number"
    return None if math.isfinite(value) else f"reported {metric} = {value}, which is not finite"


def cause_of(error_text: str) -> str:
    """One line for why a trial died, from what Ray says of it."""
    text = error_text.strip()
    if "running low on memory" in text or "OutOfMemoryError: Task was killed" in text:
        return "killed: the node was running out of memory"
    if detail := re.search(r"Worker exit detail: (.*)", text):
        return f"its process died: {detail[1].split('. ')[0]}"
    if "actor died" in text or "ActorDied" in text or "actor is dead" in text:
        return "its process died"
    # What stands below the last indented line of the traceback is the exception; its text may have several lines.
    words: list[str] = []
    for line in reversed(text.splitlines()):
        if line.startswith((" ", "\t")):
            break
        words.insert(0, line.strip())
    return " ".join(" ".join(words).split())[:300] or "it died without a word"


def is_lost_node(error: BaseException | None) -> bool:
    """Whether a trial died with its node, or the way to that was lost."""
    if isinstance(error, ray.exceptions.ActorUnavailableError):  # before Ray knows that the node is dead
        return True
    died = r"node (has died|was terminated|is dead)|node failure|raylet (has )?died"
    return isinstance(error, ray.exceptions.RayActorError) and re.search(died, str(error), re.IGNORECASE) is not None


def is_full_gpu(text: str) -> bool:
    """Whether a trial found no room on its GPU, by PyTorch's words."""
    return "CUDA out of memory" in text or "torch.OutOfMemoryError" in text or "CUDA error: out of memory" in text


def full_disk(folder: Path) -> OSError | None:
    """The error that writing to a folder meets, if its disk or the user's quota is used up."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(ENOUGH_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error
    return None


class Bookkeeper(Callback):
    """Records starts, results, checkpoints, failures and ends of trials, and deletes the checkpoints that nobody needs.

    Tune swallows some of what its callbacks raise. A disk that is full must end the sweep, so the first fault is kept in `fault`, and
    the `EndOfTrial` stopper then ends the experiment.
    """

    def __init__(
        self,
        record: Record,
        sampler: Sampler,
        *,
        metric: str,
        mode: Mode,
        max_epochs: int,
        keep_checkpoints: int,
        max_failures: int,
        trial_timeout_s: float | None,
        gpu_share: float,
        measures_gpu: bool,
        scratch: Path,
        node: str | None,
        names_of_nodes: Callable[[], dict[str, str]],
        progress: ProgressLine,
        partial_outputs: PartialOutputs | None,
        deadline: Deadline | None,
        verify_lock: Callable[[], None],
        in_company: bool,
        taken_over: dict[str, dict[str, Any]],
    ) -> None:
        self.record, self.sampler, self.progress, self.partial_outputs = record, sampler, progress, partial_outputs
        self.metric, self.mode, self.max_epochs = metric, mode, max_epochs
        self.keep_checkpoints, self.max_failures, self.trial_timeout_s = keep_checkpoints, max_failures, trial_timeout_s
        self.gpu_share = gpu_share  # of a GPU, what a trial that starts now takes
        self.measures_gpu = measures_gpu  # whether the next report is to say how many trials can share a GPU
        self.scratch, self.deadline = scratch, deadline
        self.node = node  # the only one; None where Tune chooses among several
        self.names_of_nodes = names_of_nodes
        self.nodes: dict[str, str] = {}  # address → name, of those that are alive
        self.names: dict[str, str] = {}  # the same, of all that ever were
        self.looked_at_nodes = -math.inf
        self.fault: BaseException | None = None
        self.reasons: dict[str, str] = {}  # trial_id → why its report cannot be used
        self.ended: set[str] = set()  # trials whose function returned
        self.saved: set[str] = set()  # trials that were ended after a checkpoint, since time is nearly up
        self.running: dict[str, TuneTrial] = {}
        self.heard: dict[str, float] = {}  # trial_id → when it last gave a sign of life
        self.killed: dict[str, str] = {}  # trial_id → why we killed its process
        # What is finished and has checkpoints: of these only the best keep them.
        self.keeping = [
            candidate
            for candidate in record.sweep.candidates
            if candidate.finished and any(trial.checkpoints for trial in candidate.members)
        ]
        self.last_event = self.last_step = time.monotonic()
        self.taken_over = taken_over  # trial_id → from whom it goes on, of population based training (schedulers.PBT)
        self.in_company = in_company  # whether trials share processes, see slots/manager.py
        self.verify_lock, self.verified = verify_lock, -math.inf

    def guarded(self, action: Callable[[], None]) -> None:
        """Do it, unless something failed before; keep the first fault."""
        if self.fault is None:
            try:
                action()
            except Exception as error:
                self.fault = error

    def state_of(self, trial: TuneTrial) -> Trial:
        return self.record.sweep.trials[trial.trial_id]

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        paused = [trial_id for trial_id, trial in self.running.items() if trial.status == TuneTrial.PAUSED]
        for trial_id in paused:
            del self.running[trial_id]
            self.guarded(partial(self.record.write, "pause", trial=trial_id))
        self.allow_for_suspension()
        if time.monotonic() > self.verified + VERIFY_LOCK_S:
            self.guarded(self.verify_lock)
            self.verified = time.monotonic()
        self.guarded(self.look_at_nodes)
        self.end_hung_trials()
        if not self.running and time.monotonic() > self.last_event + START_DEADLINE_S and self.fault is None:
            self.fault = WorldError(f"no trial has begun for {START_DEADLINE_S // 60} minutes, though there is room for one")
        self.progress.show(self.record.sweep)
        if self.partial_outputs:
            self.guarded(partial(self.partial_outputs.write_now_and_then, self.record.sweep))

    def allow_for_suspension(self) -> None:
        """Where Slurm has suspended the job, trials stood still as the driver did: that time is not held against them."""
        gap_s, self.last_step = time.monotonic() - self.last_step, time.monotonic()
        if gap_s > SUSPENDED_S:
            self.last_event += gap_s
            self.heard = {trial_id: at + gap_s for trial_id, at in self.heard.items()}

    def look_at_nodes(self) -> None:
        """Note which nodes have come and gone. Where there is only one there is nothing to see: the driver runs on it."""
        if self.node is not None or time.monotonic() < self.looked_at_nodes + LOOK_AT_NODES_S:
            return
        now = self.names_of_nodes()
        first = self.looked_at_nodes == -math.inf
        for state, changed in (("lost", self.nodes.keys() - now.keys()), ("joined", now.keys() - self.nodes.keys())):
            for address in sorted(changed) if not first else ():
                self.record.write("node", node=(self.nodes | now)[address], state=state)
        self.nodes, self.looked_at_nodes = now, time.monotonic()
        self.names |= now

    def end_hung_trials(self) -> None:
        """Kill the process of a trial from which nothing was heard for too long; Tune then tries it again as after any other failure."""
        for trial_id, trial in self.running.items():
            actor = trial.temporary_state.ray_actor
            if self.trial_timeout_s is None or actor is None or time.monotonic() < self.heard[trial_id] + self.trial_timeout_s:
                continue
            self.killed[trial_id] = f"it reported nothing for {duration(self.trial_timeout_s)} (trial_timeout), so it was ended"
            self.heard[trial_id] = math.inf
            actor.kill() if self.in_company else ray.kill(actor)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        def write() -> None:
            restored = trial.latest_checkpoint_result
            epoch = restored.metrics["training_iteration"] if restored else 0
            self.record.write("start", trial=trial.trial_id, node=self.node, from_epoch=epoch)
            self.running[trial.trial_id] = trial
            self.heard[trial.trial_id] = self.last_event = time.monotonic()

        self.guarded(write)

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any) -> None:
        if self.measures_gpu:
            self.guarded(partial(self.pack_gpus, result.get(GPU_MEMORY_MB)))
        result = flatten_dict(result)  # as schedulers see it: a nested metric is `outer/inner`
        self.heard[trial.trial_id] = self.last_event = time.monotonic()
        if self.node is None and result["node_ip"] not in self.names:
            self.names |= self.names_of_nodes()
        trial.is_tried_again = False  # what failed before has been

        def write() -> None:
            self.record.write(
                "result",
                trial=trial.trial_id,
                epoch=result["training_iteration"],
                metrics=numbers_of(result),
                time_s=round(result["time_total_s"], 3),
                node=self.node or self.names.get(result["node_ip"], result["node_ip"]),
            )
            # Its scheduler was asked before. Now, since until the trial goes on the other one may have become something else.
            if taken := self.taken_over.pop(trial.trial_id, None):
                before = list(self.state_of(trial).checkpoints.values())
                self.record.write("take_over", trial=trial.trial_id, **taken)
                for path in before:  # nobody goes on from those any more
                    shutil.rmtree(self.record.path.parent / path, ignore_errors=True)

        self.guarded(write)

    def pack_gpus(self, memory_mb: tuple[int, int] | None) -> None:
        """Have trials that start from now on share GPUs, as many as find room by what the first one takes, which had one for itself."""
        self.measures_gpu = False
        if memory_mb is None:
            logger.warning(
                "Neither PyTorch nor nvidia-smi can say what a trial takes of its GPU: each has one for itself. Set trial_resources.gpu to a number."
            )
            return
        used_mb, total_mb = memory_mb
        sharing = max(1, min(int(PACKED_SHARE * total_mb / max(used_mb, 1)), MOST_ON_A_GPU))
        self.gpu_share = 1 / sharing
        self.record.write("gpu_share", gpu=self.gpu_share, used_mb=used_mb, total_mb=total_mb)
        logger.info(
            "The first trial takes %d of %d MB of its GPU: up to %d share one (trial_resources.gpu: %.3g would say so from the start).",
            used_mb,
            total_mb,
            sharing,
            self.gpu_share,
        )

    def on_checkpoint(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, checkpoint: Checkpoint, **_: Any) -> None:
        def write() -> None:
            path = Path(checkpoint.path).relative_to(self.record.path.parent)
            epoch = trial.last_result["training_iteration"]
            flush_folder(Path(checkpoint.path))  # before the record speaks of it: a power loss is not to leave half of it
            self.record.write("checkpoint", trial=trial.trial_id, epoch=epoch, path=str(path))
            self.prune(self.state_of(trial))

        self.guarded(write)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        state = self.state_of(trial)
        if trial.trial_id in self.saved:
            self.running.pop(trial.trial_id, None)
            self.guarded(partial(self.record.write, "pause", trial=trial.trial_id))
            return
        reason = self.reasons.get(trial.trial_id)
        if reason is None and not state.has_reported(self.metric):
            reason = f"ended without reporting {self.metric}"
        whole = trial.trial_id in self.ended or state.epochs >= self.max_epochs
        self.guarded(lambda: self.finish(state, "ERROR" if reason else "TERMINATED" if whole else "STOPPED", reason))

    def judge(self, trial: TuneTrial, error: BaseException | None) -> bool:
        """Record why a trial failed; whether it is tried again.

        Not counted are what it is not to blame for: a full disk, which ends the sweep, a lost node, and a GPU that its neighbours fill. For the
        latter a trial gets twice the share from then on, so that there are fewer of them.
        """
        text = str(error)
        logger.debug("trial %s failed:\n%s", trial.trial_id, text)
        self.last_event = time.monotonic()
        if self.fault is None and is_full_disk(text):
            self.fault = full_disk(self.record.path.parent)  # it may be another disk that is full, which is the trial's own affair
        killed = self.killed.pop(trial.trial_id, None)
        mine = trial.placement_group_factory.required_resources.get("GPU", 0)
        crowded = is_full_gpu(text) and 0 < mine < 1 and not self.in_company
        in_company = self.in_company and isinstance(error, ray.exceptions.RayActorError)
        lost = (is_lost_node(error) or in_company) and killed is None
        forgiven = sum(not failure.counted for failure in self.state_of(trial).failures)
        counted = not (crowded or lost) or forgiven >= MOST_FORGIVEN
        cause = killed or (
            "the process in which it trained with others ended"
            if in_company
            else "its node was lost, or the way to it"
            if lost
            else cause_of(text)
        )

        def write() -> None:
            self.record.write("failure", trial=trial.trial_id, error=cause, counted=counted)
            # Its neighbours fail in the same moment, and are not to double the share once more.
            if crowded and mine >= self.gpu_share:
                self.gpu_share = min(1.0, 2 * self.gpu_share)
                self.record.write("gpu_share", gpu=self.gpu_share)
                logger.info("A GPU was too full for the trials on it: each now takes %.3g of one.", self.gpu_share)

        self.guarded(write)
        return not counted or self.state_of(trial).num_failures <= self.max_failures

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self.running.pop(trial.trial_id, None)
        self.give_share(trial)

    def give_share(self, trial: TuneTrial) -> None:
        """Have a trial that waits take as much of a GPU as trials take now."""
        has = trial.placement_group_factory.required_resources
        if has.get("GPU") and has["GPU"] != self.gpu_share:
            trial.update_resources({"cpu": has.get("CPU", 0), "gpu": self.gpu_share})

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        state = self.state_of(trial)
        if getattr(trial, "is_tried_again", False):
            # Tune does not try it again where it fails before it runs, as when a process that waited for its next trial is gone. The next run does.
            self.running.pop(trial.trial_id, None)
            self.guarded(partial(self.record.write, "pause", trial=trial.trial_id))
            return
        self.guarded(lambda: self.finish(state, "ERROR", state.failures[-1].error))

    def finish(self, state: Trial, status: str, reason: str | None) -> None:
        self.running.pop(state.trial_id, None)
        self.record.write("finish", trial=state.trial_id, status=status, error=reason)
        candidate = self.record.sweep.candidate_of(state)
        if candidate.finished:
            self.sampler.tell(candidate)
        self.last_event = time.monotonic()
        if reason:
            logger.debug("trial %s: %s", state.trial_id, reason)
        for trial in candidate.members:
            self.prune(trial)
        if candidate.finished and any(trial.checkpoints for trial in candidate.members):
            self.keeping.append(candidate)
        # Another trial's best may just have been surpassed.
        self.keeping.sort(key=lambda one: (one.rank(self.metric, self.mode)[0], one.rank(self.metric, self.mode, {})))
        for surpassed in self.keeping[self.keep_checkpoints :]:
            for trial in surpassed.members:
                self.prune(trial, keep_best=False)
        del self.keeping[self.keep_checkpoints :]

    def prune(self, trial: Trial, keep_best: bool = True) -> None:
        """Delete a trial's checkpoints but the one of its best epoch and, until it is finished, the latest, from which it would go on.

        Where it is one of several with its configuration the best epoch is theirs, which may still be one that not all of them have come to.
        """
        candidate = self.record.sweep.candidate_of(trial)
        # Where none is within the constraint: another one may be set afterwards.
        best = (candidate.counted(self.metric, self.mode) or candidate.counted(self.metric, self.mode, {})) if keep_best else None
        kept = {best.epoch} if best else set()
        if trial.checkpoints and (not candidate.finished or (best and best.epoch not in trial.checkpoints)):
            kept.add(max(trial.checkpoints))
        if candidate is not trial and not candidate.finished:
            kept |= {epoch for epoch in trial.checkpoints if epoch > candidate.epochs}
        for epoch in [e for e in trial.checkpoints if e not in kept]:
            shutil.rmtree(self.record.path.parent / trial.checkpoints.pop(epoch), ignore_errors=True)
        if candidate.finished and not trial.checkpoints:
            shutil.rmtree(self.scratch / trial.trial_id, ignore_errors=True)


class EndOfTrial(Stopper):
    """Ends a trial after `max_epochs`, once it has come far enough, or at a report that cannot be used; the experiment after a fault, and before time is up."""

    def __init__(self, bookkeeper: Bookkeeper, stop: Bounds, goes_back: Callable[[str], bool] = lambda trial_id: False) -> None:
        self.bookkeeper, self.goes_back = bookkeeper, goes_back  # whether a trial takes its last epoch once more, see schedulers.Replay
        self.stop = stop  # of the config: how far a trial need not go

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        result = flatten_dict(result)
        if result.get(DONE):
            self.bookkeeper.ended.add(trial_id)
        if "training_iteration" not in result:  # the function returned without a report
            return True
        if reason := unusable(result, self.bookkeeper.metric):
            self.bookkeeper.reasons[trial_id] = reason
            return True
        if result["training_iteration"] >= self.bookkeeper.max_epochs:
            return not self.goes_back(trial_id)
        if any_holds(result, self.stop):
            self.bookkeeper.ended.add(trial_id)
            return True
        if (deadline := self.bookkeeper.deadline) and deadline.is_near() and result.get(HAS_CHECKPOINT) and not result.get(DONE):
            self.bookkeeper.saved.add(trial_id)
            return True
        return False

    def stop_all(self) -> bool:
        if self.bookkeeper.fault is not None:
            return True
        deadline = self.bookkeeper.deadline
        return deadline is not None and deadline.is_near() and (deadline.is_here() or not self.bookkeeper.running)
