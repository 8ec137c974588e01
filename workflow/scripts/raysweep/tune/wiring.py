"""This module makes the objects of a session, connects these objects, and runs `Tuner.fit()`."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from raysweep.cluster.job import ConfirmJob, SearchJob
from raysweep.cluster.lock import DRIVER_LOCK, Lock
from raysweep.common.errors import WorldError, describe_os_error, logger
from raysweep.common.files import disk_error
from raysweep.common.machine import NodeSize
from raysweep.record.budget import is_budget_used_up
from raysweep.record.events import finish
from raysweep.record.file import Record
from raysweep.record.outputs import PartialOutputs
from raysweep.record.progress import ProgressLine
from raysweep.record.results import Goal
from raysweep.record.stagnation import Stagnation
from raysweep.tune import trial
from raysweep.tune.faults import FirstFault, full_disk_in
from raysweep.tune.gpu_share import GpuShare
from raysweep.tune.hung_trials import RunningTrials
from raysweep.tune.node_watch import NodeWatch, OtherJobs
from raysweep.tune.population import HandOvers, Replay
from raysweep.tune.private import unnamed_callbacks
from raysweep.tune.record_callback import CallbackParts, RecordCallback
from raysweep.tune.repeats import GroupedScheduler
from raysweep.tune.replay import replay
from raysweep.tune.retention import Retention
from raysweep.tune.retries import RetryPolicy
from raysweep.tune.schedulers import ShieldedScheduler, make_scheduler
from raysweep.tune.search import RecordedSearch, StartConditions, TrialPlan
from raysweep.tune.session import Session, end_session, open_session
from raysweep.tune.slots.manager import SlotHandle, trials_in_slots
from raysweep.tune.stopping import EndOfTrial, TrialLimits
from raysweep.tune.trackers import trackers

EXPERIMENT = "trials"  # name of Tune's experiment and of the experiment's folder


def run_tune(job: SearchJob | ConfirmJob, nodes: tuple[NodeSize, ...]) -> None:
    """Run the trials that are not finished yet, and record how the session ended.

    Raises RaysweepError if trials are left or if a fault has ended the session.
    """
    with Lock(job.state_dir, job.name, DRIVER_LOCK, job.slurm_job) as lock, Record(job.record) as record:
        session = open_session(job, nodes, record)
        # For a model, Replay gets no schedule, because trial.confirm_model changes the configuration during the training.
        replaying = Replay(record, HandOvers(), job.schedule if job.sweep.trainable is not None else ())
        parts = make_parts(session, replaying, lock.verify)
        fit(session, parts, make_session_scheduler(session, parts, replaying))
        if parts.partial_outputs:
            parts.partial_outputs.write(record.sweep)
        end_session(session, parts.end_of_trial.is_over())


def make_parts(session: Session, replaying: Replay, verify_lock: Callable[[], None]) -> CallbackParts:
    """Return the objects that the callback calls."""
    job, sweep, record, fusion = session.job, session.sweep, session.record, session.fusion
    faults = FirstFault()
    timeout_s = sweep.trial_timeout_s
    if timeout_s is not None and fusion:
        timeout_s *= fusion.patience
    running = RunningTrials(timeout_s, kill=SlotHandle.kill if fusion else ray.kill)
    gpu_share = GpuShare(record, session.resources.gpu, session.measures_gpu)
    other_jobs = None
    if isinstance(job, SearchJob) and job.slurm_job is not None and job.early_ends is not None:
        other_jobs = OtherJobs(job.slurm_job.id, job.early_ends)
    nodes = NodeWatch(record, session.nodes, other_jobs)
    if fusion and other_jobs is not None:
        fusion.follow(nodes.sizes, lambda: job.total - sum(trial.finished for trial in record.sweep.trials.values()), nodes.is_leaving)
    limits = TrialLimits(
        sweep.compared_metrics if session.is_search else (sweep.metric,), job.max_epochs, session.stop, job.deadline, sweep.mode
    )
    return CallbackParts(
        faults=faults,
        running=running,
        nodes=nodes,
        gpu_share=gpu_share,
        retries=RetryPolicy(record, faults, running, gpu_share, max_failures=sweep.max_failures, has_engines=fusion is not None),
        retention=Retention(
            record,
            session.scratch / EXPERIMENT,
            metric=sweep.metric,
            mode=sweep.mode,
            keep_checkpoints=sweep.keep_checkpoints if session.is_search else 0,
        ),
        end_of_trial=EndOfTrial(
            limits,
            faults,
            running,
            replaying.is_due,
            lambda trial_id: record.sweep.trials[trial_id].results,
            nodes,
        ),
        hand_overs=replaying.hand_overs,
        sampler=session.sampler,
        progress=ProgressLine(
            job.name if session.is_search else f"{job.name} (confirm)", total=job.total, metric=sweep.metric, mode=sweep.mode
        ),
        partial_outputs=(
            PartialOutputs(job.state_dir, Goal(job.name, sweep.metric, sweep.mode), job.header.provenance) if session.is_search else None
        ),
        verify_lock=verify_lock,
    )


def make_session_scheduler(session: Session, parts: CallbackParts, replaying: Replay) -> TrialScheduler:
    """Return the scheduler of a session, after the scheduler has learned the recorded events. A confirmation has the scheduler `replaying`."""
    sweep, record = session.sweep, session.record
    scheduler: TrialScheduler = replaying
    if session.is_search:
        scheduler = make_scheduler(sweep, record, session.space, parts.hand_overs)
    scheduler.set_search_properties(sweep.metric, sweep.mode)
    if session.is_search:
        if record.sweep.repeats > 1:
            scheduler = GroupedScheduler(scheduler, record.sweep, sweep.metric)
        for trial_id in replay(scheduler, record.sweep, sweep.metric):
            record.write("finish", **finish(trial_id, "scheduler"))
    return ShieldedScheduler(scheduler, record, parts.end_of_trial, parts.retries.is_retried, reuses_processes(session))


def make_search(session: Session, parts: CallbackParts) -> RecordedSearch:
    """Return the search algorithm of a session, which gives the session's trials to Tune."""
    job, sweep, recorded, gpu_share = session.job, session.sweep, session.record.sweep, parts.gpu_share
    no_better_for = sweep.end_when.no_better_for if session.is_search else None
    stagnation = None if no_better_for is None else Stagnation(recorded, no_better_for)
    # HyperBand fills a bracket before HyperBand compares trials, and population based training compares the whole population. So Tune gets all trials of the
    # sweep at the beginning, and starts as many trials at the same time as fit on the nodes.
    takes_all = session.is_search and sweep.scheduler.name in ("hyperband", "pbt")

    def max_concurrent() -> float:
        if gpu_share.is_measuring:
            return 1
        return math.inf if takes_all else session.capacity(parts.nodes.sizes(), gpu_share.share)

    def may_start_new() -> bool:
        is_over = session.is_search and is_budget_used_up(recorded, sweep)
        return not is_over and not (stagnation and stagnation.is_reached())

    conditions = StartConditions(
        max_concurrent,
        may_start_new=may_start_new,
        is_over=parts.end_of_trial.is_over,
        may_improve=stagnation is not None,
    )
    plan = TrialPlan(job.total, sweep.seed, job.tasks if isinstance(job, ConfirmJob) else ())
    return RecordedSearch(session.record, session.sampler, plan, conditions, parts.retries, gpu_share)


def make_tuner(session: Session, parts: CallbackParts, scheduler: TrialScheduler) -> tune.Tuner:
    """Return the tuner that runs the trials of a session."""
    job = session.job
    # RecordedSearch limits how many trials wait for a process at the same time. With Tune's own limit the processes would start one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(job.total)
    tools = trackers(job.sweep, job.name, session.record, job.header.identity) if session.is_search else []
    return tune.Tuner(
        trial.trainable(job, session.resources),
        tune_config=tune.TuneConfig(search_alg=make_search(session, parts), scheduler=scheduler, reuse_actors=reuses_processes(session)),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(session.scratch),
            stop=parts.end_of_trial,
            callbacks=[RecordCallback(session.record, parts), *tools],
            verbose=0,
        ),
    )


def fit(session: Session, parts: CallbackParts, scheduler: TrialScheduler) -> None:
    """Run the trials with Tune. Raises the first fault of the callback or of Tune."""
    faults = parts.faults
    try:
        tuner = make_tuner(session, parts, scheduler)
        logger.info("%s: starting the trials.", session.job.name)
        with unnamed_callbacks(), trials_in_slots(session.fusion.slots) if session.fusion else contextlib.nullcontext():
            tuner.fit()
    except Exception as error:
        faults.note(disk_fault(error, session.job.state_dir))
        if faults.fault is None:
            raise
        logger.debug("Tune ended with", exc_info=True)
    if isinstance(faults.fault, OSError):
        raise WorldError(describe_os_error(faults.fault))
    if faults.fault is not None:
        raise faults.fault


def reuses_processes(session: Session) -> bool:
    """Return whether the process of a trial that has ended may run another trial.

    A function of the user can leave environment variables, closed streams, threads or seeds behind, which change the results of a later trial in the same
    process. The workflow's own training leaves nothing behind. An engine already runs several trials in one process.
    """
    sweep = session.sweep
    return not session.fusion and (sweep.trainable is None or sweep.trial_resources.reuse_processes)


def disk_fault(error: Exception, state_dir: Path) -> OSError | None:
    """Return the fault of the disk that caused an error of Tune.

    Return None if a write to the state folder succeeds and the error names no full disk. The write is tested because on a full disk Tune often raises another
    error, since Tune cannot write the original error to a file.
    """
    if (fault := disk_error(state_dir)) is not None:
        return fault
    return full_disk_in(error)
