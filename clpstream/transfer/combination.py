"""Each missing row as a weighted sum of a few anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.memory import block_bytes
from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, bounds

_SUMMED_AT_ONCE = 512
"""Anchors' rows of one sum: few enough to stay in a processor's cache."""


Part = tuple[Ids, npt.NDArray[Any], npt.NDArray[Any]]
"""Of consecutive missing rows: how many anchors each has, their indices row after row, weights."""


def compact(counts: Ids, indices: npt.NDArray[Any], values: npt.NDArray[Any]) -> Part:
    """A part in as little memory as it is kept in: int32 indices, float32 weights."""
    return counts, indices.astype(np.int32, copy=False), values.astype(np.float32, copy=False)


class SparseWeights:
    """Weights of the anchors for each missing row, kept as compressed sparse rows."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """Compact parts, in order. A row may have none."""
        counts = [part[0] for part in parts]
        self._starts = np.cumsum(np.concatenate([[0], *counts]), dtype=np.int64)
        self._indices = np.concatenate([np.empty(0, np.int32), *(part[1] for part in parts)])
        self._values = np.concatenate([np.empty(0, np.float32), *(part[2] for part in parts)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def of(self, row: int) -> tuple[Ids, Doubles]:
        """The anchors of one missing row and their weights."""
        part = slice(self._starts[row], self._starts[row + 1])
        return self._indices[part].astype(np.int64), self._values[part].astype(np.float64)

    def combine(self, start: int, stop: int, anchors: Rows) -> Floats:
        """The weighted sums for the missing rows from `start` to `stop`: (n, width)."""
        width = anchors.shape[1]
        out = np.zeros((stop - start, width), np.float32)
        counts = np.diff(self._starts[start : stop + 1])
        most = int(counts.max(initial=1))
        gathered = max(1, block_bytes() // (4 * width))
        for row in range(0, stop - start, step := max(1, gathered // most)):
            indices, values = self._padded(start + row, min(start + row + step, stop))
            for column in range(0, indices.shape[1], gathered):
                columns = slice(column, column + gathered)
                part = _weighted_sums(indices[:, columns], values[:, columns], anchors)
                out[row : row + step] += part
        return out

    def _padded(self, start: int, stop: int) -> tuple[Ids, Floats]:
        """Indices and weights of some missing rows as matrices; what is too short gets weight 0."""
        counts = np.diff(self._starts[start : stop + 1])
        part = slice(self._starts[start], self._starts[stop])
        there = np.arange(counts.max(initial=1)) < counts[:, None]
        indices = np.full(there.shape, self._indices[part][:1].sum(), np.int64)
        values = np.zeros(there.shape, np.float32)
        indices[there], values[there] = self._indices[part], self._values[part]
        return indices, values


def _weighted_sums(indices: Ids, values: Floats, anchors: Rows) -> Floats:
    """sum_k values[i, k] * anchors[indices[i, k]]: each anchor's row is read once."""
    used, place = np.unique(indices, return_inverse=True)
    rows, place = anchors[used], place.reshape(indices.shape)
    step = max(1, _SUMMED_AT_ONCE // indices.shape[1])
    parts = [slice(start, start + step) for start in range(0, len(indices), step)]
    return np.vstack([np.einsum("mk,mkd->md", values[p], rows[place[p]]) for p in parts])


def gathered(
    groups: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], rows: Rows
) -> Rows:
    """A row for each group of rows of a matrix: their sum with the group's weights."""
    counts = np.array([len(group) for group in groups], np.int64)
    indices = np.array([index for group in groups for index in group], np.int64)
    values = np.array([weight for group in weights for weight in group], np.float64)
    return Combined(SparseWeights([compact(counts, indices, values)]), rows)


class Combined:
    """The combinations of an anchors' matrix as a matrix (n_missing, d_source), made by slices."""

    def __init__(self, weights: SparseWeights, anchors: Rows) -> None:
        self._weights = weights
        self._anchors = anchors
        self.shape = (len(weights), anchors.shape[1])

    def __getitem__(self, index: Any) -> Floats:
        return self._weights.combine(*bounds(index, self.shape[0]), self._anchors)
