"""Run the agent, which the launcher starts once on each node. The agent exchanges messages through standard input and output (raysweep/cluster/agent.py)."""

import os
import sys

from raysweep.cluster.agent import run_agent


def main() -> None:
    # The original standard output is only for messages to the launcher. Text that modules and programs print goes to stderr, which is the terminal.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run_agent(sys.stdin, channel)


if __name__ == "__main__":
    main()
