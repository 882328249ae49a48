"""Rows of a tensor on disk, read when they are asked for and forgotten afterwards."""

from __future__ import annotations

import mmap
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import dtypes
from clpstream.checkpoint.safetensors_file import TensorSpan
from clpstream.errors import CheckpointError, NotFiniteError

_PAGES_KEPT = 16 << 20
"""Bytes of mapped pages after which they are dropped: resident memory stays below this."""
_FAULT_AROUND = 65_536
"""Linux maps up to this much around a page that is touched."""


class TensorRows:
    """A tensor of shape (rows, ...) as a read-only matrix (rows, width) on disk.

    Indexing with a slice or an integer array gives float32 rows, and raises TransferError where
    one is not finite. `words` gives the same rows bit for bit. The file is mapped, shared and
    read-only; pages are dropped behind the reader, so that resident memory stays small.
    """

    def __init__(self, span: TensorSpan) -> None:
        self.span = span
        self.shape = (span.shape[0], prod(span.shape[1:]))
        self._dtype = dtypes.FLOATS[span.dtype]
        start = span.offset - span.offset % mmap.ALLOCATIONGRANULARITY
        try:
            with span.path.open("rb") as file:
                self._map = mmap.mmap(
                    file.fileno(),
                    span.offset - start + span.length,
                    access=mmap.ACCESS_READ,
                    offset=start,
                )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{span}: can't be mapped into memory: {error}") from None
        word = np.dtype(f"<u{self._dtype.itemsize}")
        self._words = np.frombuffer(self._map, word, prod(self.shape), span.offset - start).reshape(
            self.shape
        )
        self._touched = 0

    def __getitem__(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        found = self.words(index)
        finite = self.finite(found)
        if not finite.all():
            row = np.arange(self.shape[0])[index][finite.argmin()]
            raise NotFiniteError(str(self.span), int(row))
        return found.view(self._dtype).astype(np.float32, copy=False)

    def finite(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of the rows, bit patterns as `words` gives them, have neither NaN nor Inf."""
        finite: npt.NDArray[np.bool_] = np.isfinite(rows.view(self._dtype)).all(axis=1)
        return finite

    def words(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows bit for bit, as unsigned integers of the dtype's size: an array of its own."""
        if isinstance(index, slice):
            return self._read(index)
        out = np.empty((len(index), self.shape[1]), self._words.dtype)
        step = max(1, _PAGES_KEPT // max(_FAULT_AROUND, self._row_bytes))
        for start in range(0, len(index), step):
            out[start : start + step] = self._read(index[start : start + step])
        return out

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self._dtype.itemsize

    def _read(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        rows = self._words[index]
        if isinstance(index, slice):
            rows = rows.copy()
        scattered = 0 if isinstance(index, slice) else _FAULT_AROUND
        self._touched += len(rows) * max(scattered, self._row_bytes)
        if self._touched >= _PAGES_KEPT:
            if hasattr(self._map, "madvise"):
                self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return rows
