"""Run a rule of check_cluster. `login` checks Slurm, `nodes` checks the nodes of the rule's Slurm job, and `table` prints the results of both rules."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from raysweep.cluster.check.run import run_login, run_nodes, run_table
from raysweep.common.errors import run_entry_point, set_up_logging
from raysweep.common.typed_json import from_json
from raysweep.config.model import AllocationConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    login = stages.add_parser("login")
    login.add_argument("--allocations", type=json.loads, required=True, help="JSON: sweep → its allocation")
    login.add_argument("--resources", type=json.loads, required=True, help="JSON: slurm_account and the like, as the profile sets them")
    login.add_argument("--output", type=Path, required=True)
    nodes = stages.add_parser("nodes")
    nodes.add_argument("--env-dir", type=Path, required=True, help="folder of the node environment")
    nodes.add_argument("--cache-dir", type=Path, help="env.cache_dir of the config")
    nodes.add_argument("--tls", choices=("auto", "on", "off"), required=True, help="ray.tls of the config")
    nodes.add_argument("--output", type=Path, required=True)
    table = stages.add_parser("table")
    table.add_argument("--inputs", type=Path, nargs="+", required=True, help="the outputs of `login` and `nodes`")
    for stage in (login, nodes, table):
        stage.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    set_up_logging(args.log, is_asked_for=True)
    if args.stage == "login":
        run_login(from_json(dict[str, AllocationConfig], args.allocations), args.resources, args.output)
    elif args.stage == "nodes":
        run_nodes(args.env_dir, args.cache_dir, args.tls, args.output, args.log)
    else:
        run_table(args.inputs)


if __name__ == "__main__":
    run_entry_point(main)
