"""Run the driver. The agent of the first node starts this program in the node environment."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from raysweep.common.errors import FAULT, WorldError, logger, run_entry_point, set_up_logging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True, help="JSON file that says what to run; waited for, since Ray is only starting")
    parser.add_argument("--terminal-fd", type=int, required=True, help="file descriptor for what the user should see")
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    set_up_logging(args.log, os.fdopen(args.terminal_fd, "w", encoding="utf-8"))
    from raysweep.cluster.job import DriverInput
    from raysweep.common.typed_json import from_json
    from raysweep.tune.driver import drive, import_all  # imported here, so that a failed import is logged like every other error

    import_all()
    while not args.job.exists():
        time.sleep(0.02)  # the agent writes this file when Ray is up, or ends this process
    given = from_json(DriverInput, json.loads(args.job.read_text()))
    try:
        drive(given)
    except WorldError as error:
        if not given.ray.has_several_jobs:
            raise
        logger.error("Error: %s", error)
        sys.exit(FAULT)  # another job may lead the sweep on, on another node


if __name__ == "__main__":
    run_entry_point(main)
