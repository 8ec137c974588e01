"""Run the rule plan, which prints the time and the resources that each sweep will need."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from raysweep.common.errors import logger, run_entry_point, set_up_logging
from raysweep.config.model import read_config
from raysweep.stages.plan import Planner, keep, lines_of, plan_path
from raysweep.stages.stage import Call, Stage

COLUMNS, NAME_COLUMNS = 80, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", nargs="+", required=True, help="names of the sweeps")
    parser.add_argument("--configs", type=Path, nargs="+", required=True, help="for each sweep the YAML file with its validated config")
    parser.add_argument("--env-dir", type=Path, required=True, help="folder of the node environment")
    parser.add_argument("--allocation", choices=["local", "slurm"], required=True, help="for runs on this machine, or for jobs of Slurm")
    parser.add_argument("--threads", type=int, required=True, help="CPUs that Snakemake would grant to a sweep on this machine")
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    set_up_logging(args.log, is_asked_for=True)
    for name, path in zip(args.sweeps, args.configs, strict=True):
        config = read_config(path)
        stage = Stage(config, name, Call(Path.cwd(), args.env_dir, args.log, threads=args.threads))
        plan = Planner(stage, on_slurm=args.allocation == "slurm").plan()
        if isinstance(plan, str):
            logger.info("\n%s\n", "\n".join(wrapped(f"sweep {name}", plan)))
        else:
            keep(plan, plan_path(Path(config.state_dir), name))
            logger.info("\nsweep %s\n%s\n", name, "\n".join(line for row in lines_of(plan) for line in wrapped(*row)))


def wrapped(name: str, text: str) -> list[str]:
    """Return a row of the plan as lines of at most COLUMNS characters."""
    indent = " " * (NAME_COLUMNS + 2)
    return textwrap.wrap(text, COLUMNS, initial_indent=f"  {name:<{NAME_COLUMNS}}", subsequent_indent=indent, break_on_hyphens=False)


if __name__ == "__main__":
    run_entry_point(main)
