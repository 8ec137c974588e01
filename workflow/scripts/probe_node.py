"""Entry point of the look at a node, started once on each by check_cluster. It talks through standard input and output; see raysweep/cluster/probe.py."""

import os
import sys

from raysweep.cluster.probe import look_at_node


def main() -> None:
    # Nothing else may write to the channel: what modules and programs print goes to the log.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    look_at_node(sys.stdin, channel, in_slurm=sys.argv[1] == "slurm")


if __name__ == "__main__":
    main()
