"""Measures in the agent how busy the GPUs of the node are, and writes the means to the agent's file beside the record.

The controller's Python runs this module.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from raysweep.common.errors import logger
from raysweep.common.gpus import gpu_use_percent
from raysweep.record.gpu_use import GpuUseFile

INTERVAL_S = 10.0  # time between two measurements
# Number of measurements in a line. Each of the first lines after a start of Ray contains one measurement, so that a short sweep has lines too.
MEASUREMENTS_PER_LINE = 6
MAX_FAILURES = 6  # number of successive measurements without an answer after which the GPUs count as GPUs that cannot be measured


@contextlib.contextmanager
def measured_gpus(file: GpuUseFile, num_gpus: int) -> Iterator[None]:
    """Measure the first `num_gpus` GPUs of this process inside the block. The end of the block does not wait for a measurement that is still running."""
    is_over = threading.Event()
    threading.Thread(target=_measure, args=(file, num_gpus, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _measure(file: GpuUseFile, num_gpus: int, is_over: threading.Event) -> None:
    """Measure until `is_over` is set, until the GPUs cannot be measured, or until the folder of the record does not exist any more."""
    num_lines = num_failures = 0
    measured: list[list[int]] = []
    began_s = time.monotonic()
    while not is_over.wait(INTERVAL_S):
        percent = gpu_use_percent(num_gpus)
        if not percent:  # the program does not answer, as happens on a busy node, or never says how busy a GPU is
            num_failures += 1
            if num_failures == MAX_FAILURES:
                logger.debug("The vendor's program does not say how busy the GPUs are.")
                return
            continue
        num_failures = 0
        measured.append(percent)
        if is_over.is_set() or len(measured) < MEASUREMENTS_PER_LINE <= num_lines:
            continue
        try:
            file.append(time.monotonic() - began_s, [sum(values) / len(measured) for values in zip(*measured, strict=True)])
        except FileNotFoundError:  # the sweep has begun anew, and its folder has another name
            return
        except OSError as error:
            logger.debug("How busy the GPUs were cannot be written to %s: %s", file.path, error)
        num_lines += 1
        measured.clear()
        began_s = time.monotonic()
