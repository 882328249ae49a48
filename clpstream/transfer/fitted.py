"""A prepared method whose rows come from a linear map that is fitted for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from clpstream.memory import block_bytes
from clpstream.transfer.index import nearest_each
from clpstream.transfer.linear import LinearMap, MappedRows, polar_bytes
from clpstream.transfer.method import NO_ANCHOR, directionless, finite_mean, own_anchors
from clpstream.transfer.ridge import Ridge
from clpstream.transfer.rows import (
    Doubles,
    Ids,
    Rows,
    Unit,
    check_count,
    check_shapes,
)

_NARROWEST = 8
"""Columns below which a tensor is no space that could be turned."""


class Fit(Protocol):
    """What fits a map for each tensor of the source; it may keep what the helper's rows give."""

    def __call__(self, anchors: Rows, words: Rows | None) -> LinearMap:
        """The map to a tensor, from its rows of the anchors (n_anchors, d_source) and of frequent
        source tokens (n_words, d_source), if any are given."""
        ...


AnyFit = TypeVar("AnyFit", bound=Fit)


class PreparedMap(Generic[AnyFit]):
    """See `Prepared`."""

    def __init__(
        self,
        make_fit: Callable[[Rows, Ids, Rows], AnyFit],
        anchors: Rows,
        wanted: Rows,
        own: Ids | None,
    ) -> None:
        """make_fit: from the helper's rows of the anchors (n_anchors, d_helper), the anchors that
        are no wanted token (n_sure,), and the rows of the wanted tokens (n_wanted, d_helper)."""
        check_shapes(anchors, wanted)
        self._anchors = anchors
        self._wanted = wanted
        self._own = own_anchors(own, wanted.shape[0], anchors.shape[0])
        self._center = finite_mean(anchors)
        self._lost = directionless(Unit(wanted, self._center))
        self.guarded = {"no direction in the helper": np.flatnonzero(self._lost)}
        unsure = self._own[self._own != NO_ANCHOR]
        sure = np.setdiff1d(np.arange(anchors.shape[0]), unsure)
        self.fit = make_fit(anchors, sure, wanted)

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """See `Prepared.rows`."""
        if not self.fits(anchors):
            return Ridge().prepare(self._anchors, self._wanted, self._own).rows(anchors)
        return self.mapped(self.fit(anchors, words))

    def fits(self, anchors: Rows) -> bool:
        """Whether a tensor's rows are a space that can be turned. Raises TransferError if there is
        not one row for each anchor."""
        check_count(anchors, self._anchors.shape[0])
        return anchors.shape[1] >= _NARROWEST

    def mapped(self, fitted: LinearMap) -> Rows:
        """The wanted rows (n_wanted, d_source), by a map of `fit`."""
        return MappedRows(fitted, self._wanted, self._lost)

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`: a map has no weights, so positive cosines in the helper."""
        wanted, anchors = Unit(self._wanted, self._center), Unit(self._anchors, self._center)
        found = nearest_each(wanted, self._own, np.array(rows, np.int64), anchors, top)
        return [(ids[cosines > 0], cosines[cosines > 0]) for ids, cosines in found]


def fit_bytes(d_helper: int, d_source: int) -> int:
    """About how much memory fitting a map, and making rows with it, takes."""
    matrix = d_helper * d_source
    fitting = polar_bytes(d_helper, d_source)
    return max(fitting, 20 * matrix, 3 * block_bytes()) + 4 * block_bytes()
