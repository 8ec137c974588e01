"""Run a relay, which another job of the sweep starts on the first node of the leader's job (raysweep/cluster/gate.py).

The arguments are the path of the gate, and the message with the public key of the other job.
"""

import sys

from raysweep.cluster.gate import copy_from

if __name__ == "__main__":
    copy_from(*sys.argv[1:])
