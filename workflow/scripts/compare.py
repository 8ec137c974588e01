"""Write the page that compares several sweeps."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysweep.common.errors import run_entry_point, set_up_logging
from raysweep.report.comparison import read_sweeps, write_comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", required=True, nargs="+", help="names of the sweeps")
    parser.add_argument("--results-dir", required=True, type=Path, help="folder of the results of all sweeps")
    parser.add_argument("--state-dir", required=True, type=Path, help="folder of the records of all sweeps")
    parser.add_argument("--output", required=True, type=Path, help="the page to write")
    parser.add_argument("--log", type=Path, help="log of the rule")
    arguments = parser.parse_args()
    set_up_logging(arguments.log)
    write_comparison(read_sweeps(arguments.sweeps, arguments.results_dir, arguments.state_dir), arguments.output)


if __name__ == "__main__":
    run_entry_point(main)
