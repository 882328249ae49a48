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
from clpstream.checkpoint.strided import open_span, read_fully, read_strided
from clpstream.errors import NotFiniteError
from clpstream.memory import block_bytes

_NEAR_ROWS = 512
"""Of a transposed tensor: rows between two that are read, which are read along with them."""


class TensorRows:
    """A tensor of shape (rows, ...) as a read-only matrix (rows, width) on disk.

    Indexing with a slice or an integer array gives float32 rows, and raises NotFiniteError where
    one has NaN, Inf, or a number that float32 can't hold. `bits` gives the same rows bit for bit.

    Rows are read into place with pread and not through a memory map: how many pages a map keeps
    resident is up to the kernel, and far more than the rows when they are scattered.
    """

    def __init__(self, span: TensorSpan) -> None:
        self.span = span
        self.shape = (span.shape[0], prod(span.shape[1:]))
        self._ones = np.ones(self.shape[1], np.float32)
        self._dtype = (dtypes.FLOATS | dtypes.INTEGERS)[span.dtype]
        self._fd = open_span(span)
        weakref.finalize(self, os.close, self._fd)

    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        with np.errstate(all="ignore"):  # a float64 that float32 can't hold is Inf
            rows = self.bits(index).view(self._dtype).astype(np.float32, copy=False)
            sums = rows @ self._ones  # finite only if the row is: a quarter of the time
        if not np.isfinite(sums).all():
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():  # large numbers may have an infinite sum
                row = np.arange(self.shape[0])[index][[finite.argmin()]]
                large = self.finite(self.bits(row)).all()
                what = "a number too large for float32" if large else "NaN or Inf"
                raise NotFiniteError(str(self.span), int(row[0]), what)
        return rows

    def finite(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of the rows, bit patterns as `bits` gives them, have neither NaN nor Inf."""
        if self.span.dtype in dtypes.INTEGERS:
            return np.ones(len(rows), bool)
        infinite = np.array(np.inf, self._dtype).view(rows.dtype)
        positive = rows.dtype.type(np.iinfo(rows.dtype).max >> 1)  # all bits but the sign
        finite: npt.NDArray[np.bool_] = (rows & positive).max(axis=1, initial=0) < infinite
        return finite

    def encode(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Rows of this tensor's dtype, bit for bit as `bits` gives them, from float32 ones.

        Rounded to nearest, ties to even; what is too large for the dtype becomes Inf.
        """
        with np.errstate(over="ignore"):
            return rows.astype(self._dtype).view(f"u{self._dtype.itemsize}")

    def bits(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows bit for bit, as unsigned integers of the dtype's size: (n, width).

        Raises IndexError for a row that is not there.
        """
        if isinstance(index, slice):
            ids = np.arange(*index.indices(self.shape[0]))
        else:
            ids = np.arange(self.shape[0])[index]
        if self.span.strides is not None:
            return self._strided_bits(ids, self.span.strides)
        out = np.empty((len(ids), self.shape[1]), f"<u{self._dtype.itemsize}")
        if not out.size:
            return out
        row_bytes, into = out.itemsize * self.shape[1], out.reshape(-1).data.cast("B")
        firsts = np.flatnonzero(np.diff(ids, prepend=-2) != 1)  # of consecutive ids: one read each
        begins = (firsts * row_bytes).tolist()
        offsets = (self.span.offset + ids[firsts] * row_bytes).tolist()
        for begin, end, offset in zip(begins, [*begins[1:], len(into)], offsets, strict=True):
            read_fully(self._fd, self.span, into[begin:end], offset)
        return out

    def _strided_bits(
        self, ids: npt.NDArray[np.int64], strides: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Like `bits`: in a transposed tensor, rows near each other cost little more than one."""
        out = np.empty((len(ids), self.shape[1]), f"<u{self._dtype.itemsize}")
        if not len(ids):
            return out
        gap = 1 if strides[0] == max(strides) else _NEAR_ROWS
        window = max(1, block_bytes() // (out.itemsize * self.shape[1]))
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        breaks = (np.diff(ordered) > gap) | (np.diff(ordered // window) > 0)
        for part in np.split(order, np.flatnonzero(breaks) + 1):
            first, last = int(ids[part[0]]), int(ids[part[-1]])
            rows = np.empty((last - first + 1, *self.span.shape[1:]), out.dtype)
            read_strided(self._fd, self.span, (first,), rows)
            out[part] = rows.reshape(len(rows), -1)[ids[part] - first]
        return out
