"""Matrices that are read block by block. A float32 numpy array is one; so is a tensor on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clpstream.errors import TransferError
from clpstream.memory import block_bytes

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_CACHED_BYTES = 1 << 20
"""Of rows that are gone through several times: few enough to stay in a processor's cache."""


class Rows(Protocol):
    """A matrix of shape (n, d): indexed by a slice or by integers, it gives float32 rows."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def __getitem__(self, index: Any, /) -> Floats: ...


def blocks(rows: Rows, budget: int | None = None) -> Iterator[slice]:
    """Slices of at most `budget` bytes of float32 (one row at least) that cover the matrix; of
    `block_bytes` if none is given."""
    count, width = rows.shape
    step = max(1, (budget or block_bytes()) // (4 * max(1, width)))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def mean(rows: Rows) -> Doubles:
    """The mean row, shape (d,), summed in float64."""
    total = np.zeros(rows.shape[1])
    for block in blocks(rows):
        total += rows[block].sum(axis=0, dtype=np.float64)
    return total / rows.shape[0]


class Selected:
    """Some rows of a matrix, in the order of `ids`."""

    def __init__(self, rows: Rows, ids: Ids) -> None:
        self._rows = rows
        self._ids = ids
        self.shape = (len(ids), rows.shape[1])

    def __getitem__(self, index: Any) -> Floats:
        return self._rows[self._ids[index]]


class Unit:
    """Rows, less `center`, divided by their L2 norm; 0 for a row without a direction.

    That is one of zeros, and one that is `center` but for 1e-6 of its norm: the rest is rounding.
    """

    def __init__(self, rows: Rows, center: Doubles | None) -> None:
        self._rows = rows
        self._center = center
        self.shape = rows.shape

    def __getitem__(self, index: Any) -> Floats:
        rows = self._rows[index]
        unit = np.empty(rows.shape, np.float32)
        for part in blocks(rows, _CACHED_BYTES):
            self._normalise(rows[part], unit[part])
        return unit

    def _normalise(self, rows: Floats, unit: Floats) -> None:
        least: Any = np.finfo(np.float32).tiny
        if self._center is not None:
            own = _norms(rows)
            least = np.where(own > least, least + 1e-6 * own, np.inf)
            rows = less(rows, self._center)
        norms = _norms(rows)
        norms[norms <= least] = np.inf
        np.divide(rows, norms, out=unit, dtype=np.float32, casting="same_kind")

    def exact(self, index: Ids) -> Doubles:
        """The same rows, all in float64."""
        rows = self._rows[index].astype(np.float64)
        if self._center is not None:
            rows -= self._center
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        exact: Doubles = rows / np.where(self[index].any(axis=1, keepdims=True), norms, np.inf)
        return exact


def check_shapes(anchors: Rows, wanted: Rows) -> None:
    """Raise TransferError unless there are anchors, of the same width as the wanted rows."""
    if anchors.shape[0] < 1:
        raise TransferError("there are no anchors: nothing to combine; check the vocabularies")
    if anchors.shape[1] != wanted.shape[1]:
        raise TransferError(
            f"anchors are {anchors.shape[1]} wide, wanted rows {wanted.shape[1]}; both must be "
            "rows of one matrix"
        )


def check_count(anchors: Rows, count: int) -> None:
    """Raise TransferError unless there is a source row for each of `count` anchors."""
    if anchors.shape[0] != count:
        raise TransferError(
            f"{anchors.shape[0]} rows for {count} anchors; there must be one for each, in their "
            "order"
        )


def bounds(index: slice, count: int) -> tuple[int, int]:
    """Start and stop of a slice of consecutive rows; IndexError for another index."""
    if not isinstance(index, slice) or index.step not in (None, 1):
        raise IndexError("rows are made for slices of consecutive rows only")
    start, stop, _ = index.indices(count)
    return start, max(start, stop)


def less(rows: Floats, center: Doubles) -> Floats:
    """Rows (n, d) less a center (d,), in float32.

    Little may be left of two large numbers: the center is subtracted as the sum of two float32
    numbers, which is as good as float64, in half the time.
    """
    near = center.astype(np.float32)
    found = (rows - near).astype(np.float32, copy=False)
    found -= (center - near).astype(np.float32)
    return found


def lengths(rows: Floats) -> npt.NDArray[Any]:
    """L2 norms, shape (n,); in float64 where the squares leave float32's range."""
    squares = np.einsum("ij,ij->i", rows, rows)
    if not ((squares > 1e-24) & (squares < 1e36)).all():
        wide = rows.astype(np.float64)
        squares = np.einsum("ij,ij->i", wide, wide)
    found: npt.NDArray[Any] = np.sqrt(squares)
    return found


def _norms(rows: Floats) -> npt.NDArray[Any]:
    """L2 norms, shape (n, 1). Raises TransferError for NaN and Inf."""
    norms = lengths(rows)
    if not np.isfinite(norms).all():
        row = np.isfinite(rows).all(axis=1).argmin()
        raise TransferError(
            f"row {row} of a block has NaN, Inf or a number that is too large; repair the rows"
        )
    return norms[:, None]
