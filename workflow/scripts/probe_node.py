"""Entry point that check_cluster starts once on each node. It talks through its standard input and output: raysweep/cluster/check/probe_node.py."""

import os
import sys

from raysweep.cluster.check.probe_node import probe_node


def main() -> None:
    # Only messages may go to the first node: lines that modules and programs print go to the log.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    probe_node(sys.stdin, channel, in_slurm=sys.argv[1] == "slurm")


if __name__ == "__main__":
    main()
