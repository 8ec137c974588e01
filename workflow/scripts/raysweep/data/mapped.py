"""Reads the rows of arrays in blocks, so that arrays that are larger than the memory can be staged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raysweep.common.errors import WorldError

BLOCK_BYTES = 8 * 2**20  # largest size in bytes of the rows that are in memory at the same time


@dataclass(frozen=True)
class MappedRows:
    """Describes some rows of the array in a .npy file. The rows stay on the disk until `blocks_of` reads them."""

    path: Path
    rows: np.ndarray  # indices of the rows, int64 [n], ascending
    row_shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, path: Path, place: str) -> MappedRows:
        """Return all rows of the array in `path`. Raises WorldError, whose message begins with `place`, where the file contains no array with rows."""
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:  # numpy raises all of these for files that are damaged
            raise WorldError(
                f"{place}: cannot be read as an array ({' '.join(str(error).split())}). Save it again with numpy.save."
            ) from error
        if array.ndim == 0:
            raise WorldError(f"{place}: is a single value. Allowed: an array with one row for each example.")
        row_shape = array.shape[1:] or (1,)
        if array.dtype == np.uint8 and array.ndim == 3:
            row_shape = (1, *row_shape)  # images without colours have one channel
        return cls(path, np.arange(len(array)), row_shape, array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.row_shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, mask: np.ndarray) -> MappedRows:
        """Return the rows for which `mask`, bool [n], is true."""
        return MappedRows(self.path, self.rows[mask], self.row_shape, self.dtype)


Inputs = np.ndarray | MappedRows


def blocks_of(inputs: Inputs) -> Iterator[np.ndarray]:
    """Yield all rows of `inputs` in order, as C-contiguous arrays of at most about BLOCK_BYTES."""
    if isinstance(inputs, np.ndarray):
        yield np.ascontiguousarray(inputs)
        return
    step = max(1, BLOCK_BYTES // max(1, int(np.prod(inputs.row_shape)) * inputs.dtype.itemsize))
    for start in range(0, int(inputs.rows[-1]) + 1 if len(inputs) else 0, step):
        first, last = np.searchsorted(inputs.rows, [start, start + step])
        if first < last:
            # The file is mapped again for each block, because the pages of a mapping count as memory of the process until the mapping ends.
            block = np.load(inputs.path, mmap_mode="r")[start : start + step][inputs.rows[first:last] - start]
            yield np.ascontiguousarray(block).reshape(-1, *inputs.row_shape)
