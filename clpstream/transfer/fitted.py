"""A prepared method whose rows come from a linear map that is fitted for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clpstream.memory import block_bytes
from clpstream.transfer.linear import LinearMap, MappedRows
from clpstream.transfer.method import NO_ANCHOR, directionless, own_anchors
from clpstream.transfer.ridge import Ridge
from clpstream.transfer.rows import (
    Doubles,
    Ids,
    Rows,
    Unit,
    check_count,
    check_shapes,
    mean,
)
from clpstream.transfer.search import Queries, nearest

_NARROWEST = 8
"""Columns below which a tensor is no space that could be turned."""


@dataclass(frozen=True)
class Pool:
    """What new pairs may be found among.

    sure: (n_sure,) anchors that are no wanted token. wanted: their rows (n_wanted, d_helper) in the
    helper. words: (n_words, d_source) rows of frequent source tokens, or None if none are given.
    """

    sure: Ids
    wanted: Rows
    words: Rows | None


Fit = Callable[[Rows, Rows, Pool], LinearMap]
"""From the anchors' rows in the helper and in a tensor of the source."""


class PreparedMap:
    """See `Prepared`."""

    def __init__(self, fit: Fit, anchors: Rows, wanted: Rows, own: Ids | None) -> None:
        check_shapes(anchors, wanted)
        self._fit = fit
        self._anchors = anchors
        self._wanted = wanted
        self._own = own_anchors(own, wanted.shape[0], anchors.shape[0])
        directionless(Unit(anchors, None))  # raises for NaN and Inf
        self._lost = directionless(Unit(wanted, mean(anchors)))
        self.guarded = {"no direction in the helper": np.flatnonzero(self._lost)}

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """See `Prepared.rows`."""
        check_count(anchors, self._anchors.shape[0])
        if anchors.shape[1] < _NARROWEST:
            return Ridge().prepare(self._anchors, self._wanted, self._own).rows(anchors)
        unsure = self._own[self._own != NO_ANCHOR]
        sure = np.setdiff1d(np.arange(anchors.shape[0]), unsure)
        fitted = self._fit(self._anchors, anchors, Pool(sure, self._wanted, words))
        return MappedRows(fitted, self._wanted, self._lost)

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`: a map has no weights, so positive cosines in the helper."""
        places, center = np.array(rows, np.int64), mean(self._anchors)
        queries = Queries(Unit(self._wanted, center), places, self._own[places])
        count = min(top, self._anchors.shape[0])
        cosines, anchors = nearest(queries, Unit(self._anchors, center), count)
        found = zip(anchors, cosines, strict=True)
        return [(ids[scores > 0], scores[scores > 0]) for ids, scores in found]


def fit_bytes(d_helper: int, d_source: int) -> int:
    """About how much memory fitting a map takes."""
    least, most = sorted((d_helper, d_source))
    return least * (32 * least + 36 * most) + 8 * block_bytes()
