"""Entry point of the driver, started by the agent in the node environment."""

import argparse
import json
import os
from pathlib import Path

from raysweep.errors import run_entry_point, set_up_logging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True, help="JSON file that says what to run")
    parser.add_argument("--terminal-fd", type=int, required=True, help="file descriptor for what the user should see")
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    set_up_logging(args.log, os.fdopen(args.terminal_fd, "w", encoding="utf-8"))
    from raysweep.driver import drive  # here, so that a failing import is told like any other failure

    drive(json.loads(args.job.read_text()))


if __name__ == "__main__":
    run_entry_point(main)
