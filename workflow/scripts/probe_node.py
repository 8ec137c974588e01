"""Run the probe, which check_cluster starts once on each node. Messages pass through standard input and output (raysweep/cluster/check/probe_node.py)."""

import os
import sys

from raysweep.cluster.check.probe_node import probe_node


def main() -> None:
    # The original standard output is only for messages to the first node. Text that modules and programs print goes to stderr, which becomes the log.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    probe_node(sys.stdin, channel, in_slurm=sys.argv[1] == "slurm")


if __name__ == "__main__":
    main()
