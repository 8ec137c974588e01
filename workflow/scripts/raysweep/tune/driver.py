"""The driver: runs what is left of a sweep (or of a confirmation) with Tune on a Ray cluster that is up, and writes its record.

Its job is a SearchJob, a ConfirmJob or a CheckJob (cluster/job.py), which the launcher made.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from raysweep.cluster.job import CheckJob, ConfirmJob, DriverInput, SearchJob
from raysweep.cluster.lock import DRIVER_LOCK, Lock
from raysweep.common.bounds import Bounds, any_holds
from raysweep.common.errors import START_AGAIN, RaysweepError, WorldError, describe_os_error, is_full_disk
from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import to_json
from raysweep.config.space import parse_space
from raysweep.record.file import Record
from raysweep.record.outputs import PartialOutputs
from raysweep.record.progress import ProgressLine
from raysweep.slurm.allocation import Deadline
from raysweep.slurm.capacity import TrialResources, capacity

logger = logging.getLogger("raysweep")

LEAST_FREE_BYTES = 2**20
EXPERIMENT = "trials"
SCRATCH = "tune-"  # begins the name of the folder of a session's checkpoints, beside the record

# Read by Tune where it is imported or used; set here and not by the user, since the record depends on them.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three log files a trial that nobody reads: the record has it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report without the metric fails its trial, not the sweep
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # snapshots of Tune's own state, which is scratch
    "RAY_AIR_NEW_OUTPUT": "0",
}


def names_of_nodes() -> dict[str, str]:
    """The nodes that are part of the Ray cluster now: address → name."""
    import ray

    return {node["NodeManagerAddress"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}


def import_all() -> None:
    """Import what every sweep needs, for which there is time while Ray starts."""
    os.environ.update(TUNE_ENVIRONMENT)
    from raysweep.tune import record_callback as bookkeeping  # noqa: F401
    from raysweep.tune.slots import fusion, manager  # noqa: F401


def drive(given: DriverInput) -> None:
    """Run the job to its end. Raises RaysweepError when it cannot be finished; the record then holds all that was."""
    import ray

    job, ray_cluster = given.job, given.ray
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it misses the log files that are turned off
    ray.init(
        address=ray_cluster.address,
        _node_ip_address=ray_cluster.node_ip,
        # Ray puts this into a shell line as it is, on each node, where the environment lies in another folder, whose path may hold spaces.
        runtime_env={"py_executable": '"$RAYSWEEP_NODE_PYTHON"'},
        logging_level=logging.WARNING,
    )
    while len(names_of_nodes()) < ray_cluster.min_nodes:
        time.sleep(0.1)  # the launcher ends this process when they do not come
    try:
        if isinstance(job, CheckJob):
            from raysweep.cluster.check.ray_task import run_node_tasks

            run_node_tasks(job, ray_cluster.nodes)
        else:
            run_tune(job, ray_cluster.nodes)
    finally:
        ray.shutdown()


def run_tune(job: SearchJob | ConfirmJob, nodes: tuple[NodeSize, ...]) -> None:
    """Hand what is left to `Tuner.fit()`."""
    from ray import tune

    from raysweep.tune import trial
    from raysweep.tune.record_callback import Bookkeeper, EndOfTrial
    from raysweep.tune.samplers import ListSampler, make_sampler
    from raysweep.tune.schedulers import Grouped, Replay, Shielded, make_scheduler, replay
    from raysweep.tune.search import JudgedTrial, RecordedSearch
    from raysweep.tune.slots.fusion import begin_fusion
    from raysweep.tune.slots.manager import trials_in_slots
    from raysweep.tune.trackers import trackers

    sweep, searching = job.sweep, isinstance(job, SearchJob)
    stop = sweep.stop if searching else {}  # a confirmation trains as long as the best trial did
    resources = job.trial_resources
    state_dir = job.state_dir
    can_pack_gpus = isinstance(job, SearchJob) and job.packs_gpus
    with Lock(state_dir, job.name, DRIVER_LOCK, job.slurm_job) as lock, Record(job.record) as record:
        for recorded in record.sweep.trials.values():
            # One that was moved a moment before a kill is where it was to be moved to.
            places = {e: (path, kept_path(recorded.trial_id, e)) for e, path in recorded.checkpoints.items()}
            found = {e: next((path for path in paths if (state_dir / path).is_dir()), None) for e, paths in places.items()}
            recorded.checkpoints = {e: path for e, path in found.items() if path is not None}
        record.write(
            "session",
            sweep=to_json(job.header),
            host=socket.gethostname(),
            pid=os.getpid(),
            nodes=to_json(nodes),
            slurm_job=job.slurm_job and job.slurm_job.id,
        )
        finish_whole(record, sweep.metric, job.max_epochs, stop)
        keep_checkpoints(record, state_dir)
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=state_dir))
        space = parse_space(sweep.search_space)
        sampler = (
            make_sampler(sweep, space, record.sweep, state_dir, job.root)
            if isinstance(job, SearchJob)
            else ListSampler([task.config for task in job.tasks])
        )
        most = capacity(nodes, TrialResources(resources.cpu, 0) if can_pack_gpus else resources)
        fusion = begin_fusion(job, nodes, space, record, most) if isinstance(job, SearchJob) else None
        packs_gpus = can_pack_gpus and not fusion
        share = record.sweep.gpu_share
        if packs_gpus:
            resources = TrialResources(resources.cpu, share or 1.0)
        elif resources.gpu and record.sweep.is_crowded and share:
            resources = TrialResources(resources.cpu, max(resources.gpu, share))
        timeout_s = sweep.trial_timeout_s
        progress = ProgressLine(job.name if searching else f"{job.name} (confirm)", total=job.total, metric=sweep.metric, mode=sweep.mode)
        outputs = PartialOutputs(state_dir, job.name, sweep.metric, sweep.mode, job.header.provenance) if searching else None
        deadline = job.walltime.deadline
        is_over = lambda: deadline is not None and deadline.is_near()  # noqa: E731
        # A model goes through its schedule by itself, see trial.confirm_model.
        replaying = Replay(record, job.schedule if sweep.trainable is not None else ())  # of a confirmation; else there is none
        scheduler = make_scheduler(sweep, record, space) if searching else replaying
        scheduler.set_search_properties(sweep.metric, sweep.mode)
        bookkeeper = Bookkeeper(
            record,
            sampler,
            metric=sweep.metric,
            mode=sweep.mode,
            max_epochs=job.max_epochs,
            keep_checkpoints=sweep.keep_checkpoints if searching else 0,
            max_failures=sweep.max_failures,
            trial_timeout_s=None if timeout_s is None else timeout_s * (fusion.patience if fusion else 1),
            gpu_share=resources.gpu,
            measures_gpu=packs_gpus and share is None,
            scratch=scratch / EXPERIMENT,
            node=nodes[0].name if len(nodes) == 1 else None,
            names_of_nodes=names_of_nodes,
            progress=progress,
            partial_outputs=outputs,
            deadline=deadline,
            verify_lock=lock.verify,
            in_company=fusion is not None,
            taken_over=getattr(scheduler, "taken_over", {}),
        )

        def at_a_time() -> int:
            held = fusion.total if fusion else capacity(nodes, TrialResources(resources.cpu, bookkeeper.gpu_share))
            return min(held, sweep.max_concurrent or held)

        JudgedTrial.judge = staticmethod(bookkeeper.judge)
        JudgedTrial.adapt = staticmethod(bookkeeper.give_share)
        replay(scheduler, record.sweep, sweep.metric)
        if record.sweep.repeats > 1:
            scheduler = Grouped(scheduler, record.sweep, sweep.metric)
        budget_s = sweep.time_budget_s if searching else None
        takes_all = searching and sweep.scheduler.name in ("hyperband", "pbt")
        # How many wait for a process at a time is for RecordedSearch to say: with Tune's own number processes start one after the other.
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(job.total)
        search = RecordedSearch(
            record,
            sampler,
            total=job.total,
            seed=sweep.seed,
            # HyperBand fills a bracket before it compares, and a population is compared as a whole, so they are handed all trials; Tune starts as many as
            # the nodes hold.
            max_concurrent=lambda: 1 if bookkeeper.measures_gpu else math.inf if takes_all else at_a_time(),
            measures_gpu=lambda: bookkeeper.measures_gpu,
            may_start=lambda: budget_s is None or record.sweep.used_s < budget_s,
            is_over=is_over,
            tasks=job.tasks if isinstance(job, ConfirmJob) else None,
        )
        try:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(trial.run, job=job), {"CPU": resources.cpu, "GPU": resources.gpu}),
                tune_config=tune.TuneConfig(
                    search_alg=search,
                    scheduler=Shielded(scheduler, bookkeeper.reasons, is_over),
                    reuse_actors=not fusion,
                ),
                run_config=tune.RunConfig(
                    name=EXPERIMENT,
                    storage_path=str(scratch),
                    stop=EndOfTrial(bookkeeper, stop, lambda trial_id: replaying.due(trial_id) is not None),
                    callbacks=[bookkeeper, *(trackers(sweep, job.name, state_dir, job.header.identity) if searching else [])],
                    verbose=0,
                ),
            )
            with trials_in_slots(fusion.slots) if fusion else contextlib.nullcontext():
                tuner.fit()
        except Exception as error:
            # On a full disk Tune fails in ways of its own, since it cannot write down what failed.
            if bookkeeper.fault is None and (is_full_disk(str(error)) or shutil.disk_usage(state_dir).free < LEAST_FREE_BYTES):
                bookkeeper.fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(state_dir))
            if bookkeeper.fault is None:
                raise
            logger.debug("Tune ended with", exc_info=True)
        if isinstance(bookkeeper.fault, OSError):
            raise WorldError(describe_os_error(bookkeeper.fault))
        if bookkeeper.fault is not None:
            raise bookkeeper.fault
        if outputs:
            outputs.write(record.sweep)
        end_session(job, record, deadline)


def end_session(job: SearchJob | ConfirmJob, record: Record, deadline: Deadline | None) -> None:
    """Note how it ended. Raises RaysweepError when trials are left; exits with START_AGAIN when the job is to be started again for them."""
    sweep, state_dir = record.sweep, record.path.parent
    if sweep.is_complete(job.total, job.sweep.time_budget_s if isinstance(job, SearchJob) else None):
        keep_checkpoints(record, state_dir)
        record.write("session_end", outcome="complete")
        return
    done = f"{sum(t.finished for t in sweep.trials.values())} of {job.total} trials done"
    if deadline is None or not deadline.is_near():
        record.write("session_end", outcome="incomplete")
        raise RaysweepError(f"{job.name}: incomplete, resumable: {done}. Run the same command again")
    begun_again = sum(s.outcome == "started again" and s.slurm_job == (job.slurm_job and job.slurm_job.id) for s in sweep.sessions)
    if begun_again < job.sweep.allocation.resubmit:
        record.write("session_end", outcome="started again")
        logger.info(
            "%s: %s, and the time of the job is nearly up: it is started again (%d of %d times).",
            job.name,
            done,
            begun_again + 1,
            job.sweep.allocation.resubmit,
        )
        sys.exit(START_AGAIN)
    record.write("session_end", outcome="out of time")
    more = (
        f"it was started again {begun_again} times, as often as allocation.resubmit says"
        if begun_again
        else "with allocation.resubmit it would go on by itself"
    )
    raise WorldError(
        f"{job.name}: incomplete, resumable: {done}, and the time of job {job.slurm_job and job.slurm_job.id} is nearly up ({more}). Run the same command again"
    )


def kept_path(trial_id: str, epoch: int) -> str:
    """Where a checkpoint lies that outlives its session, below the state folder."""
    return f"checkpoints/{trial_id}-epoch{epoch}"


def finish_whole(record: Record, metric: str, max_epochs: int, stop: Bounds) -> None:
    """Finish the trials that had reported their last epoch when an earlier session was cut off: they would train one too many."""
    for trial in record.sweep.trials.values():
        is_whole = trial.epochs >= max_epochs or (bool(trial.results) and any_holds(trial.results[-1].metrics, stop))
        if not trial.finished and is_whole:
            error = None if trial.has_reported(metric) else f"ended without reporting {metric}"
            record.write("finish", trial=trial.trial_id, status="ERROR" if error else "TERMINATED", error=error)


def keep_checkpoints(record: Record, state_dir: Path) -> None:
    """Move the checkpoints that are kept to a folder of their own, and delete what else earlier sessions of Tune left."""
    for trial in record.sweep.trials.values():
        for epoch, path in list(trial.checkpoints.items()):
            if not path.startswith(SCRATCH):
                continue
            kept = kept_path(trial.trial_id, epoch)
            (state_dir / "checkpoints").mkdir(exist_ok=True)
            shutil.rmtree(state_dir / kept, ignore_errors=True)
            os.replace(state_dir / path, state_dir / kept)
            record.write("checkpoint", trial=trial.trial_id, epoch=epoch, path=kept)
    for scratch in state_dir.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)
