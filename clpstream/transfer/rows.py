"""Matrices that are read block by block. A float32 numpy array is one; so is a tensor on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

BLOCK_BYTES = 16 << 20
"""Size of the float32 blocks in which matrices are read and made."""


class Rows(Protocol):
    """A matrix of shape (n, d): indexed by a slice or by integers, it gives float32 rows."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def __getitem__(self, index: Any, /) -> Floats: ...


def blocks(rows: Rows, budget: int = BLOCK_BYTES) -> Iterator[slice]:
    """Slices of at most `budget` bytes of float32 (one row at least) that cover the matrix."""
    count, width = rows.shape
    step = max(1, budget // (4 * max(1, width)))
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
    """Rows, less `center`, divided by their L2 norm; a row that is (almost) `center` becomes 0.

    "Almost" is 1e-6 of the row's own norm: what is left of it then is rounding, without a
    direction.
    """

    def __init__(self, rows: Rows, center: Doubles | None) -> None:
        self._rows = rows
        self._center = center
        self.shape = rows.shape

    def __getitem__(self, index: Any) -> Floats:
        rows = np.asarray(self._rows[index], np.float32)
        least = np.float32(np.finfo(np.float32).tiny)
        if self._center is not None:
            least = least + np.float32(1e-6) * _norms(rows)
            rows = rows - self._center.astype(np.float32)
        norms = _norms(rows)
        norms[norms <= least] = np.inf
        return rows / norms

    def exact(self, index: Ids) -> Doubles:
        """The same rows, all in float64."""
        rows = self._rows[index].astype(np.float64)
        if self._center is not None:
            rows -= self._center
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        exact: Doubles = rows / np.where(self[index].any(axis=1, keepdims=True), norms, np.inf)
        return exact


def _norms(rows: Floats) -> Floats:
    """L2 norms, shape (n, 1); by way of float64 where the squares leave float32's range."""
    squares = np.einsum("ij,ij->i", rows, rows)
    if ((squares > 1e-24) & (squares < 1e36)).all():
        norms: Floats = np.sqrt(squares)[:, None]
    else:
        norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True).astype(np.float32)
    return norms
