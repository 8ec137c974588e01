"""Measure the time of training steps for `snakemake plan`. This program runs in the environment of the trials.

The program reads a MeasurementInput as JSON from the standard input, and prints a Measurement as JSON in the last line of the output.
"""

import json
import os
import sys

from raysweep.common.errors import run_entry_point


def main() -> None:
    from raysweep.tune.slots.fusion import KEEP_MEMORY

    if (
        not KEEP_MEMORY.keys() <= os.environ.keys()
    ):  # the process starts again, because glibc reads these variables only at the start of a process
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    from raysweep.cluster.job import MeasurementInput
    from raysweep.common.typed_json import from_json, to_json
    from raysweep.tune.measure import measure

    print(json.dumps(to_json(measure(from_json(MeasurementInput, json.load(sys.stdin))))))


if __name__ == "__main__":
    run_entry_point(main)
