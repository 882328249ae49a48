"""Nearest anchors by cosine: exact, over blocks of anchors, with a running best k."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.device import device
from clpstream.memory import block_bytes, share
from clpstream.transfer.method import NO_ANCHOR
from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, Unit, blocks

_RESOLUTION = 2e-6
"""Scores of unit rows that are closer than this may come out of float32 in either order."""
_MOST_RIVALS = 1024
"""How many anchors beyond the k-th may be compared in float64 where the k-th place is unclear."""


_CACHED_BYTES = 1 << 20
"""Of rows that are multiplied with others: few enough to stay in a processor's cache."""


class Kept(Unit):
    """The rows of a Unit, read once and kept in memory."""

    def __init__(self, unit: Unit) -> None:
        self.shape = unit.shape
        self.exact = unit.exact  # type: ignore[method-assign]
        self._kept = np.empty(unit.shape, np.float32)
        for block in blocks(unit):
            self._kept[block] = unit[block]

    def __getitem__(self, index: Any) -> Floats:
        rows: Floats = self._kept[index]
        return rows


def kept_bytes() -> int:
    """Of the rows that are kept while all others go past them: all anchors, or some queries."""
    return share(10)


def kept(anchors: Unit) -> Unit:
    """The anchors in memory, if they fit into `kept_bytes`."""
    return Kept(anchors) if 4 * anchors.shape[0] * anchors.shape[1] <= kept_bytes() else anchors


def query_bytes(anchors: Unit) -> int:
    """Of the rows that are searched for at once: for each block of them, all anchors are read."""
    return block_bytes() if isinstance(anchors, Kept) else kept_bytes()


class Queries:
    """Some unit rows, read once in float32, and in float64 when they are asked for.

    own: for each, the anchor that its search passes over, or NO_ANCHOR.
    """

    def __init__(self, unit: Unit, ids: Ids, own: Ids, found: Floats | None = None) -> None:
        self._unit = unit
        self._ids = ids
        self.own = own
        self.rows = unit[ids] if found is None else found

    def some(self, places: Ids) -> Queries:
        """Those at `places`, which are not read again."""
        return Queries(self._unit, self._ids[places], self.own[places], self.rows[places])

    def exact(self, places: Ids) -> Doubles:
        """The float64 rows at `places`."""
        return self._unit.exact(self._ids[places])


def nearest(queries: Queries, anchors: Unit, k: int) -> tuple[Doubles, Ids]:
    """For each query, the k nearest anchors: scores (n, k) in falling order, and ids (n, k).

    The search is exact, by FAISS in float32. Where the next anchor scores as high as the k-th
    within float32's rounding, float64 decides, and the lower id where that is equal too: the
    neighbours are those of the formula, whatever the blocks and the threads, unless over a thousand
    anchors score the same. `k` is at most the number of anchors, which is at least 1. A query's own
    anchor is none of its neighbours; only where `k` is all anchors it is there, as the last, with a
    score of -inf.
    """
    ids = _nearest(queries, anchors, k, rivals=1)
    return _first(_cosines(queries.rows, anchors, ids), ids, queries.own, k)


def nearest_of(queries: Queries, anchors: Unit, ids: Ids, k: int) -> tuple[Doubles, Ids]:
    """For each query, the k nearest of the anchors `ids` (n, r), by float32: scores and ids (n, k),
    as `nearest` gives them.

    Where an id is NO_ANCHOR, it comes last, with a score of -inf.
    """
    return _first(_products(queries.rows, anchors, ids), ids, queries.own, k)


def _first(scores: npt.NDArray[Any], ids: Ids, own: Ids, k: int) -> tuple[Doubles, Ids]:
    """The k largest scores of each line (n, r), in falling order, and their ids; the own one's
    counts as -inf."""
    scores[ids == own[:, None]] = -np.inf
    order = np.lexsort((ids, -scores))[:, :k]
    found = np.take_along_axis(scores, order, axis=1).astype(np.float64, copy=False)
    return found, np.take_along_axis(ids, order, axis=1)


def _nearest(queries: Queries, anchors: Unit, k: int, rivals: int) -> Ids:
    """The k nearest anchors (n, k), in any order, from the k + `rivals` best or more."""
    count = min(k + rivals, anchors.shape[0])
    scores, ids = search(queries.rows, queries.own, anchors, count, _pieces(anchors))
    if count == k:
        return ids
    first = scores[:, k - 1]
    unclear = first - scores[:, k] < _RESOLUTION
    wide_enough = (first - scores[:, -1] >= _RESOLUTION) | (count == anchors.shape[0])
    if rivals >= _MOST_RIVALS:
        wide_enough[:] = True
    here, wider = np.flatnonzero(unclear & wide_enough), np.flatnonzero(unclear & ~wide_enough)
    if len(here):
        best = _order(queries.some(here), anchors, ids[here])[:, :k]
        ids[here, :k] = np.take_along_axis(ids[here], best, axis=1)
    if len(wider):
        ids[wider, :k] = _nearest(queries.some(wider), anchors, k, min(16 * rivals, _MOST_RIVALS))
    return ids[:, :k]


def _cosines(queries: Floats, anchors: Unit, ids: Ids) -> Doubles:
    """The scores of the anchors `ids` (n, k), summed in float64.

    FAISS's sums differ in their last bits with the number of threads, and a low temperature makes
    much of that.
    """
    arrays = device().arrays
    there = arrays.held(anchors)
    if there is not anchors:
        from clpstream.gpu import GpuArrays

        assert isinstance(arrays, GpuArrays)
        return arrays.dots(queries, there, ids)
    scores = np.full(ids.shape, -np.inf)
    step = max(1, _CACHED_BYTES // (8 * anchors.shape[1]))
    for block in _pieces(anchors):
        rows = anchors[block]
        lines, places = np.nonzero((ids >= block.start) & (ids < block.stop))
        for start in range(0, len(lines), step):
            line, place = lines[start : start + step], places[start : start + step]
            found = rows[ids[line, place] - block.start]
            scores[line, place] = np.einsum("nd,nd->n", queries[line], found, dtype=np.float64)
    return scores


def _products(queries: Floats, anchors: Unit, ids: Ids) -> Floats:
    """The scores of the anchors `ids` (n, k) in float32, the same whatever the threads; -inf where
    an id is NO_ANCHOR.

    By FAISS, which takes the rows from where they are: gathering them, as `_cosines` does, takes
    five times as long.
    """
    import faiss  # here, since importing it takes longer than most commands run

    scores = np.full(ids.shape, -np.inf, np.float32)
    found, shape = np.empty_like(scores), (queries.shape[1], *ids.shape)
    for block in _pieces(anchors):
        rows = np.ascontiguousarray(anchors[block])
        here = (ids >= block.start) & (ids < block.stop)
        places = np.where(here, ids - block.start, NO_ANCHOR)
        arrays = map(faiss.swig_ptr, (found, queries, rows, places))
        faiss.fvec_inner_products_by_idx(*arrays, *shape)  # type: ignore[attr-defined]
        np.copyto(scores, found, where=here)
    return scores


def search(
    queries: Floats, own: Ids, anchors: Rows, k: int, pieces: Iterable[slice]
) -> tuple[Floats, Ids]:
    """For each query (n, d) the k anchors with the largest products in float32, in falling order:
    products (n, k), that with its own being -inf, and ids (n, k).

    pieces: slices that cover the anchors.
    """
    own = own[:, None]
    wider = k + bool((own != NO_ANCHOR).any())  # so that k are left without the own one
    scores = np.empty((len(own), 0), np.float32)
    ids = np.empty((len(own), 0), np.int64)
    index = device().search.index(anchors, wider)
    whole = index is not anchors
    for block in [slice(0, anchors.shape[0])] if whole else pieces:
        found = index if whole else anchors[block]
        best = min(wider, block.stop - block.start)
        new_scores, new_ids = device().search.best(queries, found, best)
        new_scores[new_ids + block.start == own] = -np.inf
        scores = np.hstack([scores, new_scores])
        ids = np.hstack([ids, new_ids + block.start])
        order = np.lexsort((ids, -scores))[:, :k]
        scores = np.take_along_axis(scores, order, axis=1)
        ids = np.take_along_axis(ids, order, axis=1)
    return scores, ids


def _pieces(anchors: Unit) -> Iterable[slice]:
    """Slices that cover the anchors: one if they are in memory."""
    return [slice(0, anchors.shape[0])] if isinstance(anchors, Kept) else blocks(anchors)


def _order(queries: Queries, anchors: Unit, candidates: Ids) -> Ids:
    """The order of each query's candidates by their cosine in float64, then by their id."""
    order = np.empty_like(candidates)
    count, width = candidates.shape[1], anchors.shape[1]
    step = max(1, block_bytes() // (8 * count * width))
    for start in range(0, len(order), step):
        places = np.arange(start, min(start + step, len(order)))
        rivals = anchors.exact(candidates[places].ravel()).reshape(-1, count, width)
        cosines = np.einsum("md,mkd->mk", queries.exact(places), rivals)
        cosines[candidates[places] == queries.own[places, None]] = -np.inf
        order[places] = np.lexsort((candidates[places], -cosines))
    return order
