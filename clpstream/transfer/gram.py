"""Products of all pairs of anchors: in memory if they fit, else in a file."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import numpy.typing as npt

from clpstream.memory import block_bytes, scratch_directory
from clpstream.transfer.rows import Floats, Rows

_SCALE = 32767
GRAM_ERROR = 0.5 / _SCALE
"""How far an entry may be from the product, but for float32's rounding."""


def gram_bytes(anchors: int) -> int:
    """Of a Gram matrix."""
    return 2 * anchors * anchors


class Gram:
    """The products of unit rows (n, d) with one another, (n, n), as whole numbers of 16 bits.

    in_memory: whether to keep them there, and not in a file without a name, which is gone when
    this process is. Raises OSError if it can't be written.
    """

    def __init__(self, units: Rows, *, in_memory: bool) -> None:
        count, width = units.shape
        self._array = np.empty((count, count), np.int16) if in_memory else None
        self._row = np.empty(count, np.int16)
        if not in_memory:
            self._file = tempfile.TemporaryFile(buffering=0, dir=scratch_directory())  # noqa: SIM115
        step = max(1, min(block_bytes() // (4 * max(1, width)), int((block_bytes() / 4) ** 0.5)))
        for start in range(0, count, step):
            rows = units[start : start + step]
            for other in range(0, start + len(rows), step):
                products = rows @ (rows if other == start else units[other : other + step]).T
                products *= _SCALE
                tile = np.rint(products, out=products).astype(np.int16)
                self._put(start, other, tile)
                if other != start:
                    self._put(other, start, np.ascontiguousarray(tile.T))

    def _put(self, row: int, column: int, tile: npt.NDArray[np.int16]) -> None:
        """Keep a tile of the matrix, whose first entry is at `row` and `column`."""
        if self._array is not None:
            self._array[row : row + len(tile), column : column + tile.shape[1]] = tile
            return
        for line, entries in enumerate(tile, row):
            part, offset = entries.data.cast("B"), 2 * (line * len(self._row) + column)
            while part:
                count = os.pwrite(self._file.fileno(), part, offset)
                part, offset = part[count:], offset + count

    def row(self, anchor: int, out: Floats) -> None:
        """The products of one anchor with all: out (n,)."""
        row = self._row
        if self._array is not None:
            row = self._array[anchor]
        else:
            os.preadv(self._file.fileno(), [row.data], 2 * anchor * len(row))
        np.multiply(row, np.float32(1 / _SCALE), out=out)
