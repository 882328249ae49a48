"""Each missing row as a weighted sum of a few anchors."""

from __future__ import annotations

from typing import Any

import numpy as np

from clpstream.transfer.rows import Doubles, Floats, Ids, Rows

_WEIGHTS_AT_ONCE = 512
"""Few enough that the dense product wastes little, enough that it runs at the speed of BLAS."""


class SparseWeights:
    """Weights of the anchors for each missing row, kept as compressed sparse rows."""

    def __init__(self, counts: Ids, indices: Ids, values: Doubles) -> None:
        """`counts`: anchors of each missing row; `indices` and `values`: row after row.

        No anchor comes twice in a row.
        """
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._indices = indices
        self._values = values

    def __len__(self) -> int:
        return len(self._starts) - 1

    def of(self, row: int) -> tuple[Ids, Doubles]:
        """The anchors of one missing row and their weights."""
        part = slice(self._starts[row], self._starts[row + 1])
        return self._indices[part], self._values[part]

    def combine(self, start: int, stop: int, anchors: Rows) -> Floats:
        """The weighted sums for the missing rows from `start` to `stop`: (n, width)."""
        out = np.zeros((stop - start, anchors.shape[1]), np.float32)
        lines = np.repeat(np.arange(stop - start), np.diff(self._starts[start : stop + 1]))
        for begin in range(0, len(lines), _WEIGHTS_AT_ONCE):
            line = lines[begin : begin + _WEIGHTS_AT_ONCE]
            first = self._starts[start] + begin
            part = slice(first, first + len(line))
            used, place = np.unique(self._indices[part], return_inverse=True)
            dense = np.zeros((line[-1] - line[0] + 1, len(used)), np.float32)
            dense[line - line[0], place] = self._values[part]
            out[line[0] : line[-1] + 1] += dense @ anchors[used]
        return out


class Combined:
    """The combinations of an anchors' matrix as a matrix (n_missing, d_source), made by slices."""

    def __init__(self, weights: SparseWeights, anchors: Rows) -> None:
        self._weights = weights
        self._anchors = anchors
        self.shape = (len(weights), anchors.shape[1])

    def __getitem__(self, index: Any) -> Floats:
        start, stop, _ = index.indices(self.shape[0])
        return self._weights.combine(start, stop, self._anchors)
