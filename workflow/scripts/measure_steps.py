"""What `snakemake plan` runs in the environment of the trials: reads what to measure from its standard input, and writes what it found as its last line."""

import json
import os
import sys

from raysweep.common.errors import run_entry_point


def main() -> None:
    from raysweep.tune.slots.fusion import KEEP_MEMORY

    if not KEEP_MEMORY.keys() <= os.environ.keys():  # glibc reads them when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    from raysweep.cluster.job import MeasurementInput
    from raysweep.common.typed_json import from_json
    from raysweep.tune.measure import measure

    print(json.dumps(measure(from_json(MeasurementInput, json.load(sys.stdin))).to_json()))


if __name__ == "__main__":
    run_entry_point(main)
