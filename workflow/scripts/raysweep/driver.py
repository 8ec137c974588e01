"""The driver: runs what is left of a sweep (or of a confirmation) with Tune on a Ray cluster that is up, and writes its record.

It gets a job, a map that the launcher wrote as JSON:

    purpose      "search" or "confirm"; or "check", which only looks at the nodes (probe_ray.py) and has a map of its own
    name, sweep  the sweep's name and its section of the validated config
    header       what the record's session says of the sweep (identity, versions, …)
    root         folder in which Snakemake was started
    record       path of the record; checkpoints and Tune's scratch lie beside it
    data_dir     folder of the staged data, or null
    model_dir    folder of the published model (confirm)
    max_epochs   longest training, in epochs
    total        number of trials
    tasks        (confirm) for each trial its id, seed, task ("search", "confirm", "evaluate") and config
    trial_resources  {cpu, gpu} of a trial, as this allocation can give it
    time_budget_s  time after which no new trial starts, in seconds, or null
    nodes        [{name, cpus, gpus}] of the allocation
    min_nodes    with how many of them the trials start
    address      of Ray's GCS
    node_ip      address of this node
"""

from __future__ import annotations

import errno
import functools
import logging
import math
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from .errors import RaysweepError, WorldError, describe_os_error, is_full_disk
from .progress import ProgressLine
from .record import Record
from .space import parse_space

logger = logging.getLogger("raysweep")

LEAST_FREE_BYTES = 2**20
SCRATCH = "tune-"  # begins the name of the folder of a session's checkpoints, beside the record

# Read by Tune where it is imported or used; set here and not by the user, since the record depends on them.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three log files a trial that nobody reads: the record has it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report without the metric fails its trial, not the sweep
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # snapshots of Tune's own state, which is scratch
    "RAY_AIR_NEW_OUTPUT": "0",
}


def capacity(nodes: list[dict[str, Any]], trial_cpus: float, trial_gpus: float) -> int:
    """How many trials the nodes can hold at a time."""

    def fits(whole: float, part: float) -> float:
        return math.floor(whole / part + 1e-9) if part else math.inf

    # A GPU is shared by parts that do not cross its edge: of two GPUs, parts of 0.4 make four, not five.
    per_gpu = fits(1, trial_gpus) if 0 < trial_gpus < 1 else None
    return int(sum(min(fits(n["cpus"], trial_cpus), n["gpus"] * per_gpu if per_gpu else fits(n["gpus"], trial_gpus)) for n in nodes))


def names_of_nodes() -> dict[str, str]:
    """The nodes that are part of the Ray cluster now: address → name."""
    import ray

    return {node["NodeManagerAddress"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}


@functools.cache
def name_of_node(address: str) -> str:
    """The name of a node that has joined; it keeps its address."""
    return names_of_nodes().get(address, address)


def drive(job: dict[str, Any]) -> None:
    """Run the job to its end. Raises RaysweepError when it cannot be finished; the record then holds all that was."""
    os.environ.update(TUNE_ENVIRONMENT)
    import ray

    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it misses the log files that are turned off
    ray.init(
        address=job["address"],
        _node_ip_address=job["node_ip"],
        # Ray puts this into a shell line as it is, on each node, where the environment lies in another folder, whose path may hold spaces.
        runtime_env={"py_executable": '"$RAYSWEEP_NODE_PYTHON"'},
        logging_level=logging.WARNING,
    )
    while len(names_of_nodes()) < job["min_nodes"]:
        time.sleep(0.1)  # the launcher ends this process when they do not come
    try:
        if job["purpose"] == "check":
            from .probe_ray import look_through_ray

            look_through_ray(job)
        else:
            run_tune(job)
    finally:
        ray.shutdown()


def run_tune(job: dict[str, Any]) -> None:
    """Hand what is left to `Tuner.fit()`."""
    from ray import tune

    from . import trial
    from .bookkeeping import Bookkeeper, EndOfTrial
    from .samplers import ListSampler, make_sampler
    from .schedulers import Shielded, make_scheduler, replay
    from .search import RecordedSearch

    sweep, searching = job["sweep"], job["purpose"] == "search"
    resources = job["trial_resources"]
    state_dir = Path(job["record"]).parent
    with Record(Path(job["record"])) as record:
        for recorded in record.sweep.trials.values():
            recorded.checkpoints = {e: path for e, path in recorded.checkpoints.items() if (state_dir / path).is_dir()}
        record.write("session", sweep=job["header"], host=socket.gethostname(), pid=os.getpid(), nodes=job["nodes"])
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=state_dir))
        sampler = (
            make_sampler(sweep, parse_space(sweep["search_space"]), record.sweep)
            if searching
            else ListSampler([t["config"] for t in job["tasks"]])
        )
        progress = ProgressLine(
            job["name"] if searching else f"{job['name']} (confirm)", total=job["total"], metric=sweep["metric"], mode=sweep["mode"]
        )
        bookkeeper = Bookkeeper(
            record,
            sampler,
            metric=sweep["metric"],
            mode=sweep["mode"],
            max_epochs=job["max_epochs"],
            keep_checkpoints=sweep["keep_checkpoints"] if searching else 0,
            node=job["nodes"][0]["name"] if len(job["nodes"]) == 1 else None,
            name_of_node=name_of_node,
            progress=progress,
        )
        scheduler = make_scheduler(sweep if searching else {**sweep, "scheduler": {"name": "none"}})
        scheduler.set_search_properties(sweep["metric"], sweep["mode"])
        replay(scheduler, record.sweep, sweep["metric"])
        most = capacity(job["nodes"], resources["cpu"], resources["gpu"])
        budget_s = job["time_budget_s"]
        fills_brackets = searching and sweep["scheduler"]["name"] == "hyperband"
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(job["total"] if fills_brackets else 1)
        search = RecordedSearch(
            record,
            sampler,
            total=job["total"],
            seed=sweep["seed"],
            # HyperBand fills a bracket before it compares, so it is handed all trials; Tune starts as many as the nodes hold.
            max_concurrent=math.inf if fills_brackets else min(most, sweep["max_concurrent"] or most),
            may_start=lambda: budget_s is None or record.sweep.used_s < budget_s,
            tasks=None if searching else job["tasks"],
        )
        try:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(trial.run, job=job), {"CPU": resources["cpu"], "GPU": resources["gpu"]}),
                tune_config=tune.TuneConfig(
                    search_alg=search, scheduler=Shielded(scheduler, bookkeeper.reasons), reuse_actors="model" in sweep
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(scratch),
                    stop=EndOfTrial(bookkeeper),
                    callbacks=[bookkeeper],
                    failure_config=tune.FailureConfig(max_failures=sweep["max_failures"]),
                    verbose=0,
                ),
            )
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
        finished = sum(t.finished for t in record.sweep.trials.values())
        complete = record.sweep.is_complete(job["total"], budget_s)
        if complete:
            remove_scratch(record, state_dir)
        record.write("session_end", outcome="complete" if complete else "incomplete")
    if not complete:
        raise RaysweepError(f"incomplete, resumable: {finished} of {job['total']} trials done. Run the same command again")


def remove_scratch(record: Record, state_dir: Path) -> None:
    """Move the checkpoints that are kept to a folder of their own, and delete Tune's."""
    for trial in record.sweep.trials.values():
        for epoch, path in list(trial.checkpoints.items()):
            if not path.startswith(SCRATCH):
                continue
            kept = f"checkpoints/{trial.trial_id}-epoch{epoch}"
            (state_dir / "checkpoints").mkdir(exist_ok=True)
            shutil.rmtree(state_dir / kept, ignore_errors=True)
            os.replace(state_dir / path, state_dir / kept)
            record.write("checkpoint", trial=trial.trial_id, epoch=epoch, path=kept)
    for scratch in state_dir.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)
