"""Snakemake, but that it asks Slurm for the states of its jobs each second: else half of the time of these tests would go by between two questions."""

import os
import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, value: None)  # type: ignore[method-assign, assignment]
os.environ["RAYSWEEP_SQUEUE_INTERVAL_S"] = "1"

if __name__ == "__main__":
    sys.exit(main())
