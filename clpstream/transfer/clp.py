"""`clp`: the paper's weights over all anchors, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.transfer.knn import Knn
from clpstream.transfer.method import heaviest
from clpstream.transfer.rows import (
    BLOCK_BYTES,
    Doubles,
    Floats,
    Ids,
    Rows,
    Selected,
    Unit,
    blocks,
    bounds,
    check_count,
    check_shapes,
    mean,
)

MIN_CONDITION = 0.01
"""Smallest ratio of the mean cosine to the root mean square cosine that the formula is used for."""
_SAMPLE = 256
"""Anchors, evenly spaced, from which the root mean square cosine is estimated."""


@dataclass(frozen=True)
class Clp:
    """CLP-Transfer (Ostendorff & Rehm 2023, arXiv 2301.09626), all anchors, cosine weights.

    E_m = sum_a w_ma E_a with w_ma = cos(H_m, H_a) / sum_a cos(H_m, H_a). Since the sum is linear,
    E_M = [Ĥ_M (Ĥ_Aᵀ E_A)] / [Ĥ_M (Ĥ_Aᵀ 1)]: a matrix of d_helper x d_source, and no similarities.

    The denominator may be negative or close to zero, where the formula flips or blows up the row.
    Where the mean cosine is below 0.01 of the root mean square cosine (of 256 anchors), the row is
    guarded: it is made from the ten nearest anchors, weighted by the same formula.
    """

    name: ClassVar[str] = "clp"

    def prepare(self, anchors: Rows, missing: Rows) -> PreparedClp:
        """See `Method.prepare`."""
        check_shapes(anchors, missing)
        return PreparedClp(anchors, missing)

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return {}

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        return 20 * d_helper * d_source + 24 * missing + 6 * BLOCK_BYTES


class PreparedClp:
    """See `Prepared`. Keeps one number per missing token; rows are read again when made."""

    def __init__(self, anchors: Rows, missing: Rows) -> None:
        self._anchors = Unit(anchors, None)
        self._missing = Unit(missing, None)
        total = mean(self._anchors) * anchors.shape[0]
        sample = self._anchors[np.linspace(0, anchors.shape[0] - 1, _SAMPLE).astype(np.int64)]
        self._denominators = np.empty(missing.shape[0])
        condition = np.empty(missing.shape[0])
        for block in blocks(missing):
            rows = self._missing[block]
            spread = np.sqrt(np.square(rows @ sample.T).mean(axis=1, dtype=np.float64))
            self._denominators[block] = rows.astype(np.float64) @ total
            condition[block] = self._denominators[block] / np.maximum(
                anchors.shape[0] * spread, np.finfo(np.float64).tiny
            )
        bad = condition < MIN_CONDITION
        self._bad = np.flatnonzero(bad)
        self._fallback = Knn(weights="similarity", center=False).prepare(
            anchors, Selected(missing, self._bad)
        )
        lost = self._bad[self._fallback.guarded["no direction in the helper"]]
        usable = np.setdiff1d(self._bad, lost)
        self.guarded = {
            "negative denominator": usable[self._denominators[usable] < 0],
            "denominator near zero": usable[self._denominators[usable] >= 0],
            "no direction in the helper": lost,
        }

    def rows(self, anchors: Rows) -> Rows:
        """See `Prepared.rows`."""
        check_count(anchors, self._anchors.shape[0])
        return _ClosedForm(
            self._missing,
            _projection(self._anchors, anchors),
            self._denominators,
            self._bad,
            self._fallback.rows(anchors),
        )

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`."""
        queries = self._missing[np.array(rows, np.int64)]
        cosines = np.hstack([queries @ self._anchors[b].T for b in blocks(self._anchors)])
        return [
            self._nearest_of_guarded(row, top)
            if row in self._bad
            else heaviest(np.arange(len(line)), line / self._denominators[row], top)
            for row, line in zip(rows, cosines, strict=True)
        ]

    def _nearest_of_guarded(self, row: int, top: int) -> tuple[Ids, Doubles]:
        return self._fallback.nearest([int(np.searchsorted(self._bad, row))], top)[0]


class _ClosedForm:
    def __init__(
        self, missing: Unit, projection: Floats, denominators: Doubles, bad: Ids, fallback: Rows
    ) -> None:
        self._missing = missing
        self._projection = projection
        self._denominators = denominators
        self._bad = bad
        self._fallback = fallback
        self.shape = (missing.shape[0], projection.shape[1])

    def __getitem__(self, index: slice) -> Floats:
        start, stop = bounds(index, self.shape[0])
        first, last = np.searchsorted(self._bad, [start, stop])
        denominators = self._denominators[start:stop].copy()
        denominators[self._bad[first:last] - start] = 1
        rows = (self._missing[index] @ self._projection) / denominators[:, None]
        rows[self._bad[first:last] - start] = self._fallback[first:last]
        made: Floats = rows.astype(np.float32)
        return made


def _projection(units: Unit, anchors: Rows) -> Floats:
    """Ĥ_Aᵀ E_A, (d_helper, d_source): products of blocks in float32, their sum in float64."""
    total = np.zeros((units.shape[1], anchors.shape[1]))
    wider = units if units.shape[1] >= anchors.shape[1] else anchors
    for block in blocks(wider):
        total += units[block].T @ anchors[block]
    return total.astype(np.float32)
