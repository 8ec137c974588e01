"""Run a relay, which another job of the sweep starts on the first node of the leader's job (raysweep/cluster/gate.py). The argument is the path of the gate."""

import sys

from raysweep.cluster.gate import copy_from

if __name__ == "__main__":
    copy_from(sys.argv[1])
