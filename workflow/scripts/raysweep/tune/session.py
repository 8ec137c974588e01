"""This module begins and ends a session. A session is one run of the driver on a sweep or on a confirmation."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysweep.cluster.job import ConfirmJob, SearchJob
from raysweep.common.bounds import Bounds
from raysweep.common.capacity import TrialResources, capacity
from raysweep.common.errors import START_AGAIN, RaysweepError, WorldError, logger
from raysweep.common.machine import NodeSize
from raysweep.common.patience import is_enough
from raysweep.common.typed_json import to_json
from raysweep.config.model import SweepConfig
from raysweep.config.space import parse_space
from raysweep.record.budget import may_begin_trials
from raysweep.record.events import FinishReason, finish
from raysweep.record.file import Record
from raysweep.record.known_trials import read_known
from raysweep.record.reopening import reopening_of
from raysweep.tune.retention import SCRATCH_PREFIX, find_checkpoints, keep_checkpoints
from raysweep.tune.samplers import ListSampler, Sampler, make_sampler
from raysweep.tune.slots.fusion import Fusion, begin_fusion


@dataclass(frozen=True)
class Session:
    """Contains the facts of a session that do not change while trials run."""

    job: SearchJob | ConfirmJob
    nodes: tuple[NodeSize, ...]
    record: Record
    space: dict[str, Any]
    sampler: Sampler
    scratch: Path  # temporary folder for Tune's files
    fusion: Fusion | None  # engines that train several trials together. None if each trial has its own process
    resources: TrialResources  # resources of each trial at the beginning of the session
    measures_gpu: bool  # whether the first trial has a GPU alone, to measure how many trials can share a GPU

    @property
    def sweep(self) -> SweepConfig:
        return self.job.sweep

    @property
    def is_search(self) -> bool:
        return isinstance(self.job, SearchJob)

    @property
    def stop(self) -> Bounds:
        """Return the key `stop`, which ends a trial early. A confirmation has no such key, because a confirmation trains as many epochs as the best trial."""
        return self.sweep.stop if self.is_search else {}

    @property
    def has_several_jobs(self) -> bool:
        """Return whether the nodes of other Slurm jobs can join."""
        return has_several_jobs(self.job)

    def capacity(self, nodes: tuple[NodeSize, ...], gpu_share: float) -> int:
        """Return how many trials may run on `nodes` at the same time if each trial uses the fraction `gpu_share` of a GPU."""
        held = self.fusion.total if self.fusion else capacity(nodes, replace(self.resources, gpu=gpu_share))
        return min(held, self.sweep.max_concurrent or held)


def has_several_jobs(job: SearchJob | ConfirmJob) -> bool:
    """Return whether the nodes of other Slurm jobs can join the Ray cluster of this job."""
    return isinstance(job, SearchJob) and job.early_ends is not None


def open_session(job: SearchJob | ConfirmJob, nodes: tuple[NodeSize, ...], record: Record) -> Session:
    """Record the beginning of a session, clean up after the last session, and start the engines if trials are trained together. Return the session.

    Finished trials go on if the reason for their end no longer holds. The clean-up marks the trials as finished that have reported their last epoch, and moves
    the checkpoints that are kept.
    """
    sweep = job.sweep
    find_checkpoints(record)
    record.write(
        "session",
        sweep=to_json(job.header),
        host=socket.gethostname(),
        pid=os.getpid(),
        nodes=to_json(nodes),
        slurm_job=job.slurm_job and job.slurm_job.id,
    )
    if isinstance(job, SearchJob):
        reopen(record, job)
    finish_whole(record, sweep.metric, job.max_epochs, sweep.stop if isinstance(job, SearchJob) else {})
    keep_checkpoints(record)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=job.state_dir))
    space = parse_space(sweep.search_space)
    sampler = _make_sampler(job, space, record)
    fusion = _begin_fusion(job, nodes, space, record)
    packs_gpus = _packs_gpus(job) and not fusion
    return Session(
        job,
        nodes,
        record,
        space,
        sampler,
        scratch,
        fusion,
        resources=_first_resources(job, record, packs_gpus),
        measures_gpu=packs_gpus and record.sweep.gpu_share is None,
    )


def _make_sampler(job: SearchJob | ConfirmJob, space: dict[str, Any], record: Record) -> Sampler:
    if isinstance(job, SearchJob):
        known = read_known(job.state_dir, job.sweep.metric) if job.header.warm_start else []
        return make_sampler(job.sweep, space, record.sweep, job.state_dir, job.root, known)
    return ListSampler([task.config for task in job.tasks])


def _packs_gpus(job: SearchJob | ConfirmJob) -> bool:
    return isinstance(job, SearchJob) and job.packs_gpus


def _begin_fusion(job: SearchJob | ConfirmJob, nodes: tuple[NodeSize, ...], space: dict[str, Any], record: Record) -> Fusion | None:
    if not isinstance(job, SearchJob):
        return None
    return begin_fusion(job, nodes, space, record, job.sweep.allocation.jobs if has_several_jobs(job) else 1)


def _first_resources(job: SearchJob | ConfirmJob, record: Record, packs_gpus: bool) -> TrialResources:
    """Return the resources of a trial at the beginning of a session. These resources depend on the share of a GPU that earlier sessions recorded."""
    resources, share = job.trial_resources, record.sweep.gpu_share
    if packs_gpus:
        return replace(resources, gpu=share or 1.0)
    if resources.gpu and record.sweep.is_crowded and share:
        return replace(resources, gpu=max(resources.gpu, share))
    return resources


def reopen(record: Record, job: SearchJob) -> None:
    """Mark the finished trials as pending whose reason to end no longer holds, and say in the log what their going on costs."""
    reopening = reopening_of(record.sweep, job.state_dir, job.max_epochs, job.sweep.stop)
    if reopening.trials:
        logger.info("%s: %s.", job.name, reopening)
    for trial in reopening.trials:
        record.write("reopen", trial=trial.trial_id)


def finish_whole(record: Record, metric: str, max_epochs: int, stop: Bounds) -> None:
    """Mark the trials as finished that had reported their last epoch, or that the scheduler had stopped, when an earlier session was interrupted.

    Without this mark such a trial would continue and train one epoch too many.
    """
    for trial in record.sweep.trials.values():
        reason: FinishReason | None = "scheduler" if trial.is_stopped else None
        if trial.epochs >= max_epochs:
            reason = "max_epochs"
        elif is_enough([result.for_stop for result in trial.results], stop, metric, record.sweep.header.mode):
            reason = "stop"
        if not trial.finished and reason is not None:
            error = None if trial.has_reported(metric) else f"ended without reporting {metric}"
            record.write("finish", **finish(trial.trial_id, reason, error))


def end_session(session: Session, is_time_over: bool) -> None:
    """Record how the session ended. `is_time_over` is whether the time of the session's job is nearly over.

    Exits with START_AGAIN if trials are left and the job must be started again. Raises RaysweepError if trials are left and the job is not started again.
    """
    job, record = session.job, session.record
    sweep = job.sweep
    if isinstance(job, SearchJob):
        is_complete = record.sweep.is_complete(job.total, may_begin_trials(record.sweep, sweep))
    else:
        is_complete = record.sweep.is_complete(job.total)
    if is_complete:
        keep_checkpoints(record)
        record.write("session_end", outcome="complete")
        return
    done = f"{sum(trial.finished for trial in record.sweep.trials.values())} of {job.total} trials done"
    if not is_time_over:
        record.write("session_end", outcome="incomplete")
        raise RaysweepError(f"{job.name}: incomplete, resumable: {done}. Run the same command again")
    if session.has_several_jobs:
        record.write("session_end", outcome="out of time")
        sys.exit(START_AGAIN)  # another job of the sweep goes on from the record
    slurm_id = job.slurm_job and job.slurm_job.id
    restarts = sum(s.outcome == "started again" and s.slurm_job == slurm_id for s in record.sweep.sessions)
    if restarts < job.sweep.allocation.resubmit:
        record.write("session_end", outcome="started again")
        logger.info(
            "%s: %s, and the time of the job is nearly up: it is started again (%d of %d times).",
            job.name,
            done,
            restarts + 1,
            job.sweep.allocation.resubmit,
        )
        sys.exit(START_AGAIN)
    record.write("session_end", outcome="out of time")
    more = (
        f"it was started again {restarts} times, as often as allocation.resubmit says"
        if restarts
        else "with allocation.resubmit it would go on by itself"
    )
    raise WorldError(
        f"{job.name}: incomplete, resumable: {done}, and the time of job {slurm_id} is nearly up ({more}). Run the same command again"
    )
