"""`clp`: the paper's weights over all anchors, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from clpstream.memory import block_bytes
from clpstream.transfer.cosine_sums import ClosedSums, PositiveSums, own_cosines, total_of
from clpstream.transfer.index import nearest_each
from clpstream.transfer.knn import Knn
from clpstream.transfer.method import NO_ANCHOR, own_anchors
from clpstream.transfer.rows import (
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
)

MIN_CONDITION = 0.01
"""Smallest ratio of the mean cosine to the root mean square cosine that the formula is used for."""
_SAMPLE = 256
"""Anchors, evenly spaced, from which the root mean square cosine is estimated."""
_MIN_POSITIVE = 1e-6
"""A sum of positive cosines that is no more than this may be rounding."""


@dataclass(frozen=True)
class Clp:
    """CLP-Transfer (Ostendorff & Rehm 2023, arXiv 2301.09626), all anchors, cosine weights.

    E_m = sum_a w_ma E_a with w_ma = cos(H_m, H_a) / sum_a cos(H_m, H_a). Since the sum is linear,
    E_M = [Ĥ_M (Ĥ_Aᵀ E_A)] / [Ĥ_M (Ĥ_Aᵀ 1)]: a matrix of d_helper x d_source, and no similarities.
    The row of a shared token is that of both sums less the term of its own anchor.

    The denominator may be negative or close to zero, where the formula flips or blows up the row.
    Where the mean cosine is below 0.01 of the root mean square cosine (of 256 anchors), the row is
    guarded: it is made from the ten nearest anchors, weighted by the same formula.

    clip_negative:
        negative cosines count as 0, so that every row is a mean of anchors' rows. There is no
        closed form, and each tensor's rows cost the cosines with all anchors. A row without a
        positive cosine is guarded as above.
    """

    clip_negative: bool = False
    name: ClassVar[str] = "clp"
    reads_helper: ClassVar[bool] = True

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> PreparedClp:
        """See `Method.prepare`."""
        check_shapes(anchors, wanted)
        own = own_anchors(own, wanted.shape[0], anchors.shape[0])
        return PreparedClp(anchors, wanted, own, self.clip_negative)

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. With one anchor, all rows are its row."""
        return 2

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        matrix = 0 if self.clip_negative else 12 * d_helper * d_source
        return matrix + 32 * missing + 6 * block_bytes()


class PreparedClp:
    """See `Prepared`. Keeps two numbers per wanted token; rows are read again when made."""

    def __init__(self, anchors: Rows, wanted: Rows, own: Ids, clip_negative: bool) -> None:
        self._anchors = Unit(anchors, None)
        self._wanted = Unit(wanted, None)
        self._own = own
        self._clip_negative = clip_negative
        if clip_negative:
            self._denominators = _positive_totals(self._wanted, self._anchors, own)
            bad = self._denominators <= _MIN_POSITIVE
        else:
            self._denominators, bad = _totals(self._wanted, self._anchors, own)
        self._bad = np.flatnonzero(bad)
        self._fallback = Knn(weights="similarity", center=False).prepare(
            anchors, Selected(wanted, self._bad), own[self._bad]
        )
        lost = self._bad[self._fallback.guarded["no direction in the helper"]]
        self.guarded = self._reasons(np.setdiff1d(self._bad, lost))
        self.guarded["no direction in the helper"] = lost

    def _reasons(self, guarded: Ids) -> dict[str, Ids]:
        if self._clip_negative:
            return {"no positive cosine": guarded}
        negative = self._denominators[guarded] < 0
        return {
            "negative denominator": guarded[negative],
            "denominator near zero": guarded[~negative],
        }

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """See `Prepared.rows`."""
        check_count(anchors, self._anchors.shape[0])
        sums = PositiveSums if self._clip_negative else ClosedSums
        return _Guarded(
            sums(self._wanted, self._anchors, self._own, anchors),
            self._denominators,
            self._bad,
            self._fallback.rows(anchors),
        )

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`."""
        places = np.array(rows, np.int64)
        bad = np.isin(places, self._bad)
        guarded = iter(
            self._fallback.nearest(np.searchsorted(self._bad, places[bad]).tolist(), top)
        )
        others = iter(nearest_each(self._wanted, self._own, places[~bad], self._anchors, top))
        return [
            next(guarded) if is_bad else self._weighed(row, *next(others))
            for row, is_bad in zip(rows, bad, strict=True)
        ]

    def _weighed(self, row: int, anchors: Ids, cosines: Doubles) -> tuple[Ids, Doubles]:
        if self._clip_negative:
            cosines = np.maximum(cosines, 0)
        return anchors, cosines / self._denominators[row]


class _Guarded:
    """Sums over their denominators, or rows of the fallback where those are bad."""

    def __init__(self, sums: Rows, denominators: Doubles, bad: Ids, fallback: Rows) -> None:
        self._sums = sums
        self._denominators = denominators
        self._bad = bad
        self._fallback = fallback
        self.shape = sums.shape

    def __getitem__(self, index: slice) -> Floats:
        start, stop = bounds(index, self.shape[0])
        first, last = np.searchsorted(self._bad, [start, stop])
        denominators = self._denominators[start:stop].copy()
        denominators[self._bad[first:last] - start] = 1
        rows: Floats = self._sums[start:stop]
        rows /= denominators[:, None].astype(np.float32)
        if first < last:
            rows[self._bad[first:last] - start] = self._fallback[first:last]
        return rows


def _positive_totals(wanted: Unit, units: Unit, own: Ids) -> Doubles:
    """The sum of each wanted row's positive cosines: (n_wanted,)."""
    sums = PositiveSums(wanted, units, own, np.ones((units.shape[0], 1), np.float32))
    found = [sums[block][:, 0] for block in blocks(wanted)]
    return np.concatenate([np.empty(0), *found])


def _totals(wanted: Unit, units: Unit, own: Ids) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Of each wanted row's cosines the sum, and whether it is bad: (n_wanted,) each.

    Bad is one whose mean is too small a part of the root mean square, which is that of a sample.
    No cosine is above 1, nor their root mean square: of most rows the mean alone tells.
    """
    total = total_of(units)
    ids = np.unique(np.linspace(0, units.shape[0] - 1, _SAMPLE).astype(np.int64))
    sample = units[ids]
    sums, bad = np.empty(wanted.shape[0]), np.zeros(wanted.shape[0], bool)
    for block in blocks(wanted):
        rows = wanted[block]
        sums[block] = rows.astype(np.float64) @ total
        shared, cosines = own_cosines(rows, units, own[block])
        sums[block.start + shared] -= cosines
        means = sums[block] / np.maximum(1, units.shape[0] - (own[block] != NO_ANCHOR))
        low = np.flatnonzero(means <= MIN_CONDITION)
        theirs = own[block][low]
        products = rows[low] @ sample.T
        products[ids == theirs[:, None]] = 0
        others = np.maximum(1, len(ids) - np.isin(theirs, ids))
        spread = np.sqrt(np.einsum("ij,ij->i", products, products) / others)
        bad[block.start + low] = means[low] <= MIN_CONDITION * spread
    return sums, bad
