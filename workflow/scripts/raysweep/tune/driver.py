"""The driver: runs what is left of a sweep (or of a confirmation) with Tune on a Ray cluster that is up, and writes its record.

Its job is a SearchJob, a ConfirmJob or a CheckJob (cluster/job.py), which the launcher made.
"""

from __future__ import annotations

import logging
import os
import time

from raysweep.cluster.job import CheckJob, DriverInput

# Tune reads these variables where it is imported, so this module imports Ray only inside functions. They are set here and not by the user, because the
# record depends on them.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three log files a trial that nothing reads: the record has all of their values
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report without the metric fails its trial, not the sweep
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # snapshots of Tune's own state, which is scratch
    "RAY_AIR_NEW_OUTPUT": "0",
}


def import_all() -> None:
    """Import the modules that every sweep needs. There is time for that while Ray starts."""
    os.environ.update(TUNE_ENVIRONMENT)
    from raysweep.tune import wiring  # noqa: F401


def drive(given: DriverInput) -> None:
    """Run the job to its end. Raises RaysweepError when the job cannot be finished; the record then holds all that was done."""
    import ray

    from raysweep.tune.node_watch import live_nodes
    from raysweep.tune.private import connect
    from raysweep.tune.wiring import run_tune

    job, ray_cluster = given.job, given.ray
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it warns of the log files that are turned off
    connect(
        ray_cluster.address,
        ray_cluster.node_ip,
        # Ray puts this into a shell line as it is. On each node the environment lies in another folder, whose path may hold spaces.
        runtime_env={"py_executable": '"$RAYSWEEP_NODE_PYTHON"'},
        logging_level=logging.WARNING,
    )
    while len(live_nodes()) < ray_cluster.min_nodes:
        time.sleep(0.1)  # the launcher ends this process when the nodes do not come
    try:
        if isinstance(job, CheckJob):
            from raysweep.tune.node_tasks import run_node_tasks

            run_node_tasks(job, ray_cluster.nodes)
        else:
            run_tune(job, ray_cluster.nodes)
    finally:
        ray.shutdown()
