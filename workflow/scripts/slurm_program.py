"""Do the work of a program in cluster/bin. `python -I -S` runs this file, so that the folder of the package is not yet on sys.path."""

from __future__ import annotations

import os
import signal
import sys

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from raysweep.slurm.programs import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # after Ctrl-C this program ends without a traceback
    sys.exit(main(*sys.argv[1:]))
