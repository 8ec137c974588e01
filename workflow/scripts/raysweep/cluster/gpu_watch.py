"""Measures in the agent how busy the GPUs of the node are, and writes the means to the agent's file beside the record.

The controller's Python runs this module.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from raysweep.common.errors import logger
from raysweep.common.gpus import gpu_use_percent
from raysweep.record.gpu_use import GpuUseFile

INTERVAL_S = 10.0  # time between two measurements
MEASUREMENTS_PER_LINE = 6  # from the seventh line of a job on; each of the first six lines contains one measurement


@contextlib.contextmanager
def measured_gpus(file: GpuUseFile) -> Iterator[None]:
    """Measure the GPUs inside the block. A measurement that is running at the end of the block is not waited for."""
    is_over = threading.Event()
    threading.Thread(target=_measure, args=(file, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _measure(file: GpuUseFile, is_over: threading.Event) -> None:
    """Measure until `is_over` is set. End at once where the vendor's program does not measure, and where a line cannot be written."""
    num_gpus = len(gpu_use_percent())
    num_lines = 0
    measured: list[list[int]] = []
    while num_gpus and not is_over.wait(INTERVAL_S):
        percent = gpu_use_percent()
        if len(percent) != num_gpus:  # the program did not answer, as happens on a busy node
            continue
        measured.append(percent)
        if len(measured) < MEASUREMENTS_PER_LINE <= num_lines:
            continue
        try:
            file.append([sum(each) / len(measured) for each in zip(*measured, strict=True)])
        except OSError as error:
            logger.debug("The use of the GPUs is not measured any more: %s: %s", file.path, error)
            return
        num_lines += 1
        measured.clear()
