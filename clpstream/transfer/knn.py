"""`knn`: a missing row is a weighted mean of its nearest anchors' rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from clpstream.device import device
from clpstream.errors import TransferError
from clpstream.memory import block_bytes, share
from clpstream.transfer.combination import (
    Part,
    PreparedSums,
    SparseWeights,
    compact,
    held_bytes,
)
from clpstream.transfer.index import (
    BYTES_OF_A_CANDIDATE,
    CHEAP,
    Searcher,
    index_bytes,
    searcher,
    searching_bytes,
)
from clpstream.transfer.method import NO_ANCHOR, own_anchors
from clpstream.transfer.rows import (
    Ids,
    Rows,
    Unit,
    blocks,
    check_shapes,
    mean,
)
from clpstream.transfer.search import Queries, kept, kept_bytes, nearest
from clpstream.transfer.weights import similarity, softmax, sparsemax, sparsemax_threshold

WeightRule = Literal["softmax", "sparsemax", "similarity"]

_OWN_INDEXES = ("exact", "auto")
_MOST_WEIGHTS = 1 << 24
"""Of sparsemax, which gives that many where all cosines are close to 1."""
_WIDEST = 1024
"""Neighbours up to which sparsemax searches; beyond, it scores all anchors."""


@dataclass(frozen=True)
class Knn:
    """The `neighbors` nearest anchors by cosine in the helper's space, weighted.

    weights:
        "softmax": exp(s / temperature), normalised, over the k nearest: WECHSEL (Minixhofer et
        al. 2022, arXiv 2112.06598), whose k=10 and T=0.1 are the defaults.
        "sparsemax": sparsemax of the scores of all anchors: FOCUS (Dobler & de Melo 2023, arXiv
        2305.14481) and CLP+ (Yamaguchi et al. 2024, arXiv 2402.10712). `neighbors` is where the
        search begins; it goes on until the result is exact.
        "similarity": the score over the sum of scores, as in CLP-Transfer (Ostendorff & Rehm
        2023, arXiv 2301.09626), but over the k nearest, and negative scores count as 0.
    index:
        "exact": all anchors are compared. "auto": so too, but where that takes more than a dozen
        seconds of a processor's core: there among candidates that come from a projection, of
        such a size that on a sample of the wanted rows 99 % of the nearest anchors are found, or
        all anchors where none is. Another string makes an index of FAISS for the candidates
        (https://github.com/facebookresearch/faiss/wiki/The-index-factory), such as
        "IVF1024,Flat"; what share of the nearest anchors it finds is in `PreparedSums.search`.
        Sparsemax weighs all anchors, and is always exact.
    center:
        subtract the anchors' mean from all helper rows before the cosine, which removes the
        common direction that embeddings share (the first step of Mu & Viswanath 2018, arXiv
        1702.01417).

    A token whose helper row has no direction (it is zero, or the mean itself) gets the mean of
    all anchors. The row of a shared token is made as if its own anchor were not there, except that
    the mean that is subtracted stays that of all anchors. Raises TransferError for parameters out
    of range, and in `prepare` if sparsemax gives more weights, or `index` more bytes, than fit
    into memory, or FAISS can't make that index.
    """

    neighbors: int = 10
    weights: WeightRule = "softmax"
    temperature: float = 0.1
    center: bool = True
    index: str = "auto"
    name: ClassVar[str] = "knn"
    reads_helper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.neighbors) is not int or self.neighbors < 1:
            raise TransferError(f"neighbors is {self.neighbors!r}; it must be a number from 1 up")
        if self.weights not in get_args(WeightRule):
            known = ", ".join(get_args(WeightRule))
            raise TransferError(f"weights is {self.weights!r}; it can be {known}")
        if not 0 < self.temperature < float("inf"):
            raise TransferError(f"temperature is {self.temperature}; it must be above 0 and finite")
        if type(self.index) is not str or not self.index:
            raise TransferError(f"index is {self.index!r}; it can be exact, auto or one of FAISS's")
        if self.weights == "sparsemax" and self.index not in _OWN_INDEXES:
            raise TransferError(
                f"index is {self.index!r}, but sparsemax weighs all anchors, which no index tells; "
                "leave it out, or choose other weights"
            )

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> PreparedSums:
        """See `Method.prepare`."""
        check_shapes(anchors, wanted)
        own = own_anchors(own, wanted.shape[0], anchors.shape[0])
        center = mean(anchors) if self.center else None
        units, unit_wanted = kept(Unit(anchors, center)), Unit(wanted, center)
        k = min(self.neighbors, anchors.shape[0])
        index = "exact" if self.weights == "sparsemax" else self.index
        search = searcher(index, units, unit_wanted, own, k)
        parts, total = [], 0
        lost = np.zeros(wanted.shape[0], bool)
        for block in search.blocks(unit_wanted):
            queries = Queries(unit_wanted, np.arange(block.start, block.stop), own[block])
            lost[block] = ~queries.rows.any(axis=1)
            alive = np.flatnonzero(~lost[block])
            counts = np.zeros(block.stop - block.start, np.int64)
            if len(alive) < len(queries.rows):
                queries = queries.some(alive)
            found, indices, values = self._weigh(queries, units, k, search)
            counts[alive] = found
            parts.append(compact(counts, indices, values))
            total += len(indices)
            if self.weights == "sparsemax":  # how many it gives is known only now
                _check_kept(total)
        weights = SparseWeights(parts)
        return PreparedSums(weights, lost, lost, own, anchors.shape[0], search.report)

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`."""
        return self.neighbors

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        options = asdict(self)
        if self.weights != "softmax":
            del options["temperature"]
        if self.weights == "sparsemax":
            del options["index"]
        return options

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        held = min(4 * max(anchors, missing) * d_helper, kept_bytes())
        rows = 4 * d_source * (min(anchors, missing) + missing)
        weights = 16 * missing * self._typical_anchors
        if self.weights == "sparsemax":  # and what is searched for further
            weights += share(8)
        index = 0
        if self.index not in _OWN_INDEXES:
            index = min(4 * anchors * d_helper, index_bytes())
        elif self.index == "auto" and anchors * missing * d_helper > CHEAP:
            held = searching_bytes()
        return index + (
            max(held + 3 * block_bytes(), min(rows, 2 * held_bytes())) + weights + 4 * block_bytes()
        )

    @property
    def _typical_anchors(self) -> int:
        return max(self.neighbors, 128) if self.weights == "sparsemax" else self.neighbors

    def _weigh(self, queries: Queries, anchors: Unit, k: int, search: Searcher) -> Part:
        """A part for `SparseWeights`."""
        if self.weights == "sparsemax":
            return _sparsemax(queries, anchors, k)
        scores, ids = search.nearest(queries)
        if self.weights == "softmax":
            values = softmax(scores, self.temperature)
        else:
            values = similarity(scores)
        others = ids != queries.own[:, None]
        return others.sum(axis=1), ids[others], values[others]


def _sparsemax(queries: Queries, anchors: Unit, k: int) -> Part:
    """Search wider for the rows whose k nearest anchors can't yet tell what all anchors give."""
    scores, ids = nearest(queries, anchors, k)
    weights, exact = sparsemax(scores)
    if k == anchors.shape[0]:
        exact[:] = True
    wider = np.flatnonzero(~exact)
    if not len(wider):
        return _nonzero(ids, weights)
    weights[wider] = 0
    known = _nonzero(ids, weights)
    del scores, ids, weights
    return _insert(known, wider, _sparsemax_of_more(queries, wider, anchors, 4 * k))


def _sparsemax_of_more(queries: Queries, wider: Ids, anchors: Unit, k: int) -> Part:
    """The same for some of the queries with a larger k, in batches that bound the memory."""
    if k > min(_WIDEST, anchors.shape[0]):
        return _sparsemax_of_all(queries.some(wider), anchors)
    step = max(1, share(8) // (BYTES_OF_A_CANDIDATE * k))
    starts = range(0, len(wider), step)
    return _joined([_sparsemax(queries.some(wider[s : s + step]), anchors, k) for s in starts])


def _sparsemax_of_all(queries: Queries, anchors: Unit) -> Part:
    """The same from the scores of all anchors, in batches that bound the memory."""
    count, arrays = anchors.shape[0], device().arrays
    step = max(1, share(8) // (16 * count))
    parts, total = [], 0
    for start in range(0, len(queries.rows), step):
        rows = queries.rows[start : start + step]
        there = arrays.held(anchors)
        products = [arrays.product(rows, there[block].T) for block in blocks(anchors)]
        scores = np.hstack(products)
        own = queries.own[start : start + step]
        shared = np.flatnonzero(own != NO_ANCHOR)
        scores[shared, own[shared]] = -np.inf
        weights = np.maximum(scores - sparsemax_threshold(scores)[:, None], 0)
        parts.append(_nonzero(np.broadcast_to(np.arange(count), weights.shape), weights))
        total += len(parts[-1][1])
        _check_kept(total)
    return _joined(parts)


def _joined(parts: Sequence[Part]) -> Part:
    counts, indices, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return counts, indices, values


def _nonzero(ids: Ids, weights: npt.NDArray[Any]) -> Part:
    there = weights > 0
    return compact(there.sum(axis=1), ids[there], weights[there])


def _check_kept(count: int) -> None:
    if count > _MOST_WEIGHTS:
        raise TransferError(
            f"sparsemax gives over {_MOST_WEIGHTS:,} weights, too many to keep: the helper's rows "
            "are almost parallel; try --center or --weights softmax"
        )


def _insert(part: Part, rows: Ids, found: Part) -> Part:
    """`part`, whose `rows` are empty, with `found` in their place."""
    counts, indices, values = part
    at = np.repeat((np.cumsum(counts) - counts)[rows], found[0])
    counts = counts.copy()
    counts[rows] = found[0]
    return counts, np.insert(indices, at, found[1]), np.insert(values, at, found[2])
