"""Entry point of the agent, which the launcher starts once on each node. It talks through its standard input and output: raysweep/cluster/agent.py."""

import os
import sys

from raysweep.cluster.agent import run_agent


def main() -> None:
    # Only messages may go to the launcher: lines that modules and programs print go to the terminal.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run_agent(sys.stdin, channel)


if __name__ == "__main__":
    main()
