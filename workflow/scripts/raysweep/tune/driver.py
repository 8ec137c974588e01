"""The driver runs the unfinished trials of a sweep or of a confirmation with Tune on a running Ray cluster, and writes the record.

The launcher gives the driver a job, which is a SearchJob, a ConfirmJob or a CheckJob (cluster/job.py).
"""

from __future__ import annotations

import logging
import os
import time

from raysweep.cluster.job import CheckJob, DriverInput
from raysweep.usercode.freeze import FOLDER_ENV

# Tune reads these variables when Tune is imported, so this module imports Ray only inside functions. This module sets the variables, and not the user,
# because the record depends on the variables.
TUNE_ENVIRONMENT = {
    # Tune would write three log files for each trial. Nothing reads these files, because the record contains all values of these files.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report without the metric fails the trial, but not the sweep
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Interval in seconds between the snapshots of Tune's own state. Nothing reads the snapshots, so the interval is longer than any sweep.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "RAY_AIR_NEW_OUTPUT": "0",
}


def import_all() -> None:
    """Import the modules that every sweep needs. The driver calls this while Ray starts, so the imports cost no extra time."""
    os.environ.update(TUNE_ENVIRONMENT)
    from raysweep.tune import wiring  # noqa: F401


def drive(given: DriverInput) -> None:
    """Run the job to its end.

    Raises RaysweepError when the job cannot be completed. The record then contains everything that happened until the error.
    """
    import ray

    from raysweep.tune.node_watch import live_nodes
    from raysweep.tune.private import connect
    from raysweep.tune.wiring import run_tune

    job, ray_cluster = given.job, given.ray
    # Tune would warn that Tune's log files are turned off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    connect(
        ray_cluster.address,
        ray_cluster.node_ip,
        # Ray copies the first text unchanged into a shell command. The environment is in a different folder on each node, so Python's path is a variable.
        # The variable is quoted because the path may contain spaces. The folder of the user's code also differs, and Ray replaces the variable on each node.
        # A program that a trial starts must not find the Ray of another run, so RAY_ADDRESS names this Ray.
        runtime_env={
            "py_executable": '"$RAYSWEEP_NODE_PYTHON"',
            "env_vars": {FOLDER_ENV: "${RAYSWEEP_NODE_CODE}", "RAY_ADDRESS": ray_cluster.address},
        },
        logging_level=logging.WARNING,
    )
    while len(live_nodes()) < ray_cluster.min_nodes:
        time.sleep(0.1)  # the launcher ends this process if the nodes do not join the Ray cluster in time
    try:
        if isinstance(job, CheckJob):
            from raysweep.tune.node_tasks import run_node_tasks

            run_node_tasks(job, ray_cluster.nodes)
        else:
            run_tune(job, ray_cluster.nodes)
    finally:
        ray.shutdown()
