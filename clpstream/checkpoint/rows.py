"""Rows of a tensor on disk, read when they are asked for."""

from __future__ import annotations

import os
import weakref
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import dtypes
from clpstream.checkpoint.safetensors_file import TensorSpan
from clpstream.errors import CheckpointError, NotFiniteError


class TensorRows:
    """A tensor as a read-only matrix (rows, width) on disk, its rows along `axis`.

    If axes come before that one, they make several such matrices, and `plane` tells which.

    Indexing with a slice or an integer array gives float32 rows, and raises NotFiniteError where
    one has NaN or Inf. `words` gives the same rows bit for bit.

    Rows are read into place with pread and not through a memory map: how many pages a map keeps
    resident is up to the kernel, and far more than the rows when they are scattered.
    """

    def __init__(self, span: TensorSpan, axis: int = 0, plane: int = 0) -> None:
        self.span = span
        self.shape = (span.shape[axis], prod(span.shape[axis + 1 :]))
        self._dtype = (dtypes.FLOATS | dtypes.INTEGERS)[span.dtype]
        self._offset = span.offset + plane * prod(self.shape) * self._dtype.itemsize
        try:
            self._fd = os.open(span.path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{span}: can't be read: {error.strerror}") from None
        weakref.finalize(self, os.close, self._fd)

    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        with np.errstate(over="ignore"):  # a float64 that float32 can't hold is Inf
            rows = self.words(index).view(self._dtype).astype(np.float32, copy=False)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            row = np.arange(self.shape[0])[index][finite.argmin()]
            raise NotFiniteError(str(self.span), int(row))
        return rows

    def finite(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of the rows, bit patterns as `words` gives them, have neither NaN nor Inf."""
        finite: npt.NDArray[np.bool_] = np.isfinite(rows.view(self._dtype)).all(axis=1)
        return finite

    def encode(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Rows of this tensor's dtype, bit for bit as `words` gives them, from float32 ones.

        Rounded to nearest, ties to even; what is too large for the dtype becomes Inf.
        """
        with np.errstate(over="ignore"):
            return rows.astype(self._dtype).view(f"u{self._dtype.itemsize}")

    def words(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows bit for bit, as unsigned integers of the dtype's size: (n, width).

        Raises IndexError for a row that is not there.
        """
        if isinstance(index, slice):
            ids = np.arange(*index.indices(self.shape[0]))
        else:
            ids = np.arange(self.shape[0])[index]
        runs = _runs(ids)
        count = sum(stop - start for start, stop in runs)
        out = np.empty((count, self.shape[1]), f"<u{self._dtype.itemsize}")
        row_bytes, place = out.itemsize * self.shape[1], 0
        into = out.reshape(-1).data.cast("B") if count else memoryview(b"")
        for start, stop in runs:
            end = place + (stop - start) * row_bytes
            self._read(into[place:end], self._offset + start * row_bytes)
            place = end
        return out

    def _read(self, into: memoryview, offset: int) -> None:
        while len(into):
            count = os.preadv(self._fd, [into], offset)
            if count == 0:
                raise CheckpointError(f"{self.span}: the file became shorter while it was read")
            into, offset = into[count:], offset + count


def _runs(ids: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Start and stop of the runs of consecutive ids; each is one read."""
    if not len(ids):
        return []
    breaks = np.flatnonzero(np.diff(ids, prepend=-2) != 1)
    lasts = np.append(breaks[1:], len(ids)) - 1
    return list(zip(ids[breaks].tolist(), (ids[lasts] + 1).tolist(), strict=True))
