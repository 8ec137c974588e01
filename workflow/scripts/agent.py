"""Entry point of the agent, started once on each node by the launcher. It talks through standard input and output; see raysweep/cluster/agent.py."""

import os
import sys

from raysweep.cluster.agent import Agent


def main() -> None:
    # Nothing else may write to the channel: what is printed goes to the terminal.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    Agent(sys.stdin, channel).run()


if __name__ == "__main__":
    main()
