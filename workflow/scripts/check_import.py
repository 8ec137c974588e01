"""Import the modules and functions that a sweep needs, in the environment of the trials, so that an error is visible before a job waits in the queue."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysweep.common.errors import run_entry_point, set_up_logging
from raysweep.common.files import written_aside
from raysweep.environment.build import check_import


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="+", required=True, help="modules, and path/to/file.py:name or package.module:name")
    parser.add_argument("--env-dir", type=Path, required=True, help="folder of the environment")
    parser.add_argument("--requirements", type=Path, required=True, help="what the environment was made from")
    parser.add_argument("--output", type=Path, required=True, help="file that lists what could be imported")
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    set_up_logging(args.log)
    check_import(args.env_dir, args.names, args.requirements)
    with written_aside(args.output) as stream:
        stream.writelines(f"{name}\n" for name in args.names)


if __name__ == "__main__":
    run_entry_point(main)
