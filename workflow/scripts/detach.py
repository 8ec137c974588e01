"""End the Snakemake that runs in this folder, and leave its jobs to Slurm. The same Snakemake command takes the jobs up again."""

from __future__ import annotations

import argparse
from pathlib import Path

from raysweep.common.errors import run_entry_point, set_up_logging
from raysweep.slurm.detach import detach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(), help="the folder in which Snakemake was started (default: this folder)")
    arguments = parser.parse_args()
    set_up_logging(None, is_asked_for=True)
    detach(arguments.directory.resolve())


if __name__ == "__main__":
    run_entry_point(main)
