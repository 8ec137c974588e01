"""Entry point of the measurement of `snakemake plan`, in the environment of the trials.

It reads a MeasurementInput from its standard input, and writes a Measurement as its last line, both as JSON.
"""

import json
import os
import sys

from raysweep.common.errors import run_entry_point


def main() -> None:
    from raysweep.tune.slots.fusion import KEEP_MEMORY

    if not KEEP_MEMORY.keys() <= os.environ.keys():  # glibc reads these variables when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    from raysweep.cluster.job import MeasurementInput
    from raysweep.common.typed_json import from_json
    from raysweep.tune.measure import measure

    print(json.dumps(measure(from_json(MeasurementInput, json.load(sys.stdin))).to_json()))


if __name__ == "__main__":
    run_entry_point(main)
