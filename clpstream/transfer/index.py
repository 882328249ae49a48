"""Nearest anchors where comparing all of them takes too long: candidates first, then cosines.

Candidates come from an index: the anchors projected on the directions that matter most, or any
index of FAISS. Their cosines decide, so that an index can miss a neighbour, but adds no wrong one.
How many it misses is measured on some of the rows that are searched for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clpstream.device import device
from clpstream.errors import TransferError
from clpstream.memory import block_bytes, share
from clpstream.transfer.method import NO_ANCHOR
from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, Selected, Unit, blocks
from clpstream.transfer.search import (
    Kept,
    Queries,
    kept,
    kept_bytes,
    nearest,
    nearest_of,
    query_bytes,
    search,
)

PROMISE = 0.99
"""Share of the true neighbours that "auto" finds; an index that finds fewer is warned of."""

CHEAP = 5e11
"""Multiplications up to which "auto" is exact: a dozen seconds of a processor's core."""
_SAMPLE = 1024
"""Rows on which recall is measured."""
_SURE = 3
"""Standard errors by which the recall of a sample must exceed what is promised for all."""
_LEAST_SPREAD = 0.03
"""Standard deviation of rows' recalls that a sample may be too small to show."""
_WIDTHS = (64, 128, 256, 512)
_DEPTHS = (2, 4, 8, 16, 32)
"""How many candidates for each neighbour may be compared by their cosines."""
_MOST_CANDIDATES = 1024
_EFFORTS = tuple(4**n for n in range(6))
"""How many of its lists an index goes through, and a 16th of how many nodes of its graph."""
_LEARNT_FROM = 4096
"""Of anchors, and of wanted rows, that tell which directions matter."""
_PASSES = 2
_NO_DIRECTION = 1e-14
"""Of the largest of the squares: what is less is rounding."""
_SCORED, _FOUND, _COMPARED, _READ = 35.0, 25_000.0, 17.0, 85.0
"""What it costs, in multiplications of a matrix product: to look at a score; to keep one of the
best so far; to multiply a number of a candidate; to read and normalise a number again."""
_WORTH = 0.5
"""Of what the exact search costs: what seems to cost more than that part of it hardly pays."""
BYTES_OF_A_CANDIDATE = 64
"""What it takes to find one, and bring it into order."""
_GREEDY = re.compile(r"OPQ|ITQ|LSQ|RQ")
"""Parts of an index for whose training FAISS takes a large multiple of the rows it is given."""
_NOTHING = re.compile(r"[A-Za-z]0(?!\d)")
"""A size of zero, which FAISS does not check everywhere before it divides by it."""
_PROBED = 1000
"""Anchors that are added to see how large an index is going to be."""


@dataclass(frozen=True)
class SearchReport:
    """How neighbours were searched for, where not exactly.

    index: "PCA" and its columns, or the string of the factory. candidates: how many were compared
    for each row. recall: share of the `neighbors` nearest anchors that are found, on average over
    `sample` of the rows.
    """

    index: str
    neighbors: int
    candidates: int
    recall: float
    sample: int


class Index(Protocol):
    """A way to find anchors that may be near."""

    def candidates(self, queries: Queries, count: int) -> Ids:
        """Ids of anchors (n, count), the most promising first; NO_ANCHOR where there are no more,
        and in place of a query's own."""
        ...


class Searcher:
    """Finds the `k` nearest anchors of queries: among candidates of an index, or among all."""

    def __init__(
        self,
        anchors: Unit,
        k: int,
        index: Index | None = None,
        report: SearchReport | None = None,
    ) -> None:
        self._anchors = anchors
        self._k = k
        self._index = index
        self.report = report

    def blocks(self, wanted: Rows) -> Iterator[slice]:
        """Of the wanted rows, those to search for at once: for each block, all anchors are read."""
        if self.report is None:
            return _exact_blocks(wanted, self._anchors, self._k)
        return _blocks(wanted, share(8), self.report.candidates)

    def nearest(self, queries: Queries) -> tuple[Doubles, Ids]:
        """Scores and ids (n, k), as `clpstream.transfer.search.nearest` gives them."""
        if self._index is None or self.report is None:
            return nearest(queries, self._anchors, self._k)
        candidates = self._index.candidates(queries, self.report.candidates)
        scores, ids = nearest_of(queries, self._anchors, candidates, self._k)
        few = np.flatnonzero(scores[:, -1] == -np.inf)
        if len(few):  # the index found less than k
            scores[few], ids[few] = nearest(queries.some(few), self._anchors, self._k)
        return scores, ids


def searcher(name: str, anchors: Unit, wanted: Unit, own: Ids, k: int) -> Searcher:
    """For the index `name`: "exact", "auto", or a string for FAISS's index factory.

    wanted: all rows that will be searched for. own: (n_wanted,) anchors that they pass over.
    "auto" is exact unless that is a lot of work for a CPU, and there too where no projection is
    likely to find PROMISE of the neighbours with less. Raises TransferError for a string from which
    no index can be built, and for one that does not fit into memory.
    """
    count, width = anchors.shape
    work = float(count) * wanted.shape[0] * width
    cheap = work <= CHEAP or device().search.compares_all
    if name == "exact" or not wanted.shape[0] or (name == "auto" and cheap):
        return Searcher(anchors, k)
    random = np.random.default_rng(0)
    built = None if name == "auto" else _Built(name, anchors, random)
    sample = _Sample(anchors, wanted, own, k, random)
    if built is not None:
        return _tuned(name, built, anchors, sample)
    return _projected(anchors, wanted, sample, random)


def nearest_each(
    wanted: Unit, own: Ids, places: Ids, anchors: Unit, top: int
) -> list[tuple[Ids, Doubles]]:
    """For the wanted rows at `places`, each: the `top` nearest anchors but its own, and cosines.

    own: (n_wanted,) as for `searcher`.
    """
    exact = Searcher(kept(anchors), min(top, anchors.shape[0]))
    found = []
    for block in exact.blocks(Selected(wanted, places)):
        some = places[block]
        scores, ids = exact.nearest(Queries(wanted, some, own[some]))
        there = scores > -np.inf
        found += [(i[t], s[t]) for i, s, t in zip(ids, scores, there, strict=True)]
    return found


class _Sample:
    """Some of the wanted rows, and their true neighbours."""

    def __init__(
        self, anchors: Unit, wanted: Unit, own: Ids, k: int, random: np.random.Generator
    ) -> None:
        ids = _some(wanted.shape[0], min(_SAMPLE, kept_bytes() // (4 * wanted.shape[1])), random)
        queries = Queries(wanted, ids, own[ids])
        self.queries = queries.some(np.flatnonzero(queries.rows.any(axis=1)))
        self.k = k
        self._truth = nearest(self.queries, anchors, k)[1]
        most = min(anchors.shape[0], max(k, _MOST_CANDIDATES))
        self.depths = sorted({min(k * depth, most) for depth in _DEPTHS})

    def recalls(self, index: Index, depths: Sequence[int]) -> list[tuple[float, bool]]:
        """For some numbers of candidates, the last being the largest: the recall, and whether that
        of all rows is likely what is promised."""
        places = np.empty(self._truth.shape, np.int64)
        for block in _blocks(self.queries.rows, share(8), depths[-1]):
            queries = self.queries.some(np.arange(block.start, block.stop))
            found = index.candidates(queries, depths[-1])
            for column, ids in enumerate(self._truth[block].T):
                same = found == ids[:, None]
                first = np.where(same.any(axis=1), same.argmax(axis=1), depths[-1])
                places[block, column] = first
        return [self._recall(places < depth) for depth in depths]

    def _recall(self, hits: npt.NDArray[np.bool_]) -> tuple[float, bool]:
        if not len(hits):
            return 1.0, False
        each = hits.mean(axis=1)
        error = max(each.std(), _LEAST_SPREAD) / np.sqrt(len(each))
        return float(each.mean()), bool(each.mean() - _SURE * error >= PROMISE)

    def report(self, name: str, depth: int, recall: float) -> SearchReport:
        return SearchReport(name, self.k, depth, recall, len(self.queries.rows))


def _some(count: int, most: int, random: np.random.Generator) -> Ids:
    """At most `most` of the numbers below `count`, in their order."""
    return np.sort(random.permutation(count)[: max(1, most)])


def _tuned(name: str, built: _Built, anchors: Unit, sample: _Sample) -> Searcher:
    """With no more effort than it takes to find what is promised, or else with the most."""
    depth = sample.depths[-1]
    for _ in built.efforts():
        ((recall, enough),) = sample.recalls(built, [depth])
        if enough:
            break
    for fewer in sample.depths[:-1] if enough else ():  # an index may look less far for fewer
        ((found, enough),) = sample.recalls(built, [fewer])
        if enough:
            depth, recall = fewer, found
            break
    return Searcher(anchors, sample.k, built, sample.report(name, depth, recall))


class _Built:
    """An index of FAISS."""

    def __init__(self, text: str, anchors: Unit, random: np.random.Generator) -> None:
        import faiss

        count, width = anchors.shape
        _check_text(text)
        self._effort = 1
        self._space = faiss.ParameterSpace()
        try:
            self._index = faiss.index_factory(width, text, faiss.METRIC_INNER_PRODUCT)
            self._lists = self._check_lists(text, count)
            self._train(text, anchors, random)
            self._check_size(text, anchors)
            for block in blocks(anchors):
                self._index.add(anchors[block])
        except RuntimeError as error:
            reason = re.sub(r"^Error in .*? at \S+:\d+: ", "", str(error), flags=re.DOTALL)
            raise TransferError(
                f"FAISS builds no index {text!r} for rows {width} wide: {reason.strip()}; see its "
                "index factory, or leave index out"
            ) from None

    def candidates(self, queries: Queries, count: int) -> Ids:
        """See `Index`."""
        # what FAISS keeps for each query: lists or nodes to go through, and what it found there
        step = max(1, block_bytes() // (16 * (self._effort + count)))
        found = np.empty((len(queries.rows), count + 1), np.int64)
        for start in range(0, len(found), step):
            part = queries.rows[start : start + step]
            found[start : start + step] = self._index.search(part, count + 1)[1]
        own = (found == queries.own[:, None]) & (found >= 0)
        # the own one goes to the end, and so does one too many
        order = np.argsort(own | (found < 0), axis=1, kind="stable")[:, :count]
        return np.take_along_axis(np.where(own, NO_ANCHOR, found), order, axis=1)

    def efforts(self) -> Iterator[None]:
        """Set how much of the index a search goes through, from little to all but all of it."""
        names = [name for name in ("nprobe", "efSearch") if self._has(name)]
        for effort in _EFFORTS if names else (1,):
            for name in names:
                value = min(effort, self._lists) if name == "nprobe" else 16 * effort
                self._effort = max(self._effort, value)
                self._space.set_index_parameter(self._index, name, value)
            yield
            if names == ["nprobe"] and effort >= self._lists:
                return

    def _has(self, name: str) -> bool:
        try:
            self._space.set_index_parameter(self._index, name, 1)
        except RuntimeError:
            return False
        return True

    def _check_lists(self, text: str, anchors: int) -> int:
        """How many inverted lists there are, 1 if the index has none."""
        import faiss

        found = faiss.try_extract_index_ivf(self._index)
        if found is None:
            return 1
        if found.nlist > anchors:
            raise TransferError(
                f"index {text!r} has {found.nlist:,} lists for {anchors:,} anchors; choose less"
            )
        _check_fits(text, 4 * found.nlist * found.d)
        lists: int = found.nlist
        return lists

    def _train(self, text: str, anchors: Unit, random: np.random.Generator) -> None:
        import faiss

        if self._index.is_trained:
            return
        count, width = anchors.shape
        ids = _some(count, kept_bytes() // (4 * width), random)
        if self._lists > len(ids):
            raise TransferError(
                f"index {text!r} has {self._lists:,} lists, and only {len(ids):,} anchors fit into "
                "the memory to find them from; choose less lists, or allow more memory"
            )
        rows = np.empty((len(ids), width), np.float32)
        for block in blocks(rows):
            rows[block] = anchors[ids[block]]
        inverted = faiss.try_extract_index_ivf(self._index)
        if inverted is not None:
            inverted.cp.min_points_per_centroid = 1  # below 39, it prints that it wants more
        self._index.train(rows)

    def _check_size(self, text: str, anchors: Unit) -> None:
        """Raise TransferError if the index with all anchors is going to be too large."""
        import faiss

        some = anchors[: min(_PROBED, anchors.shape[0])]
        empty = len(faiss.serialize_index(self._index))
        self._index.add(some)
        each = (len(faiss.serialize_index(self._index)) - empty) / len(some)
        self._index.reset()
        _check_fits(text, int(empty + each * anchors.shape[0]))


def _check_text(text: str) -> None:
    if greedy := _GREEDY.search(text):
        raise TransferError(
            f"index {text!r}: training {greedy[0]} takes more memory than can be bounded; choose "
            "an index without it, such as 'IVF1024,PQ64', or 'auto'"
        )
    if nothing := _NOTHING.search(text):
        raise TransferError(f"index {text!r} has a size of zero in {nothing[0]!r}; choose more")


def _check_fits(text: str, needed: int) -> None:
    if needed > index_bytes():
        raise TransferError(
            f"index {text!r} takes {needed / 1e6:,.0f} MB or more, and {index_bytes() / 1e6:,.0f} "
            "MB, half of the memory limit, are for it; allow more memory, or choose an index that "
            "is smaller, such as 'IVF1024,PQ64', or 'auto'"
        )


def index_bytes() -> int:
    """Of an index of FAISS."""
    return share(2)


def searching_bytes() -> int:
    """Of a projection, and of what is searched for in it."""
    return projection_bytes() + share(8) + share(8)


def projection_bytes() -> int:
    """Of the anchors' components along all directions that are tried."""
    return share(5)


def _blocks(wanted: Rows, most: int, candidates: int) -> Iterator[slice]:
    """Of the wanted rows, those that take `most` bytes with their candidates beside them."""
    row = 4 * wanted.shape[1]
    return blocks(wanted, most * row // (row + BYTES_OF_A_CANDIDATE * candidates))


def _exact_blocks(wanted: Rows, anchors: Unit, k: int) -> Iterator[slice]:
    return _blocks(wanted, query_bytes(anchors), k)


def _projected(
    anchors: Unit, wanted: Unit, sample: _Sample, random: np.random.Generator
) -> Searcher:
    """The projection that costs least of those that find enough, or the exact search."""
    count, width = anchors.shape
    most = min(width // 2, projection_bytes() // (2 * count), _WIDTHS[-1])
    widths = [columns for columns in _WIDTHS if columns <= most]
    least, best = _WORTH * _exact_cost(anchors, wanted, sample.k), None
    if widths:
        whole = _Projection.of(anchors, _directions(anchors, wanted, widths[-1], random))
    for columns in widths:
        found = sample.recalls(whole.first(columns), sample.depths)
        for depth, (recall, sure) in zip(sample.depths, found, strict=True):
            cost = _cost(anchors, wanted, columns, depth)
            if sure and cost < least:
                least, best = cost, (columns, sample.report(f"PCA {columns}", depth, recall))
    if best is None:
        return Searcher(anchors, sample.k)
    columns, report = best
    chosen = whole if columns == widths[-1] else whole.first(columns).alone()
    return Searcher(anchors, sample.k, chosen, report)


def _exact_cost(anchors: Unit, wanted: Unit, k: int) -> float:
    """Of comparing all: anchors are read for the products, and for the best again."""
    count, width = anchors.shape
    parts = len(list(_exact_blocks(wanted, anchors, k)))
    searching = wanted.shape[0] * (count * (width + _SCORED) + k * _FOUND)
    return searching + 2 * parts * _reading_cost(anchors)


def _cost(anchors: Unit, wanted: Unit, columns: int, depth: int) -> float:
    """Of comparing `depth` candidates from a projection."""
    count, width = anchors.shape
    parts = len(list(_blocks(wanted, share(8), depth)))
    each = count * (columns + _SCORED) + depth * (_FOUND + _COMPARED * width)
    return wanted.shape[0] * each + parts * _reading_cost(anchors)


def _reading_cost(anchors: Unit) -> float:
    """Of reading all of them once."""
    return 0.0 if isinstance(anchors, Kept) else _READ * anchors.shape[0] * anchors.shape[1]


class _Projection:
    """Anchors as their components along a few directions, in half precision: (n, columns)."""

    def __init__(self, directions: Floats, rows: npt.NDArray[np.float16]) -> None:
        """directions: (width, columns), orthonormal."""
        self._directions = directions
        self._rows = rows
        self.shape = rows.shape

    @classmethod
    def of(cls, anchors: Unit, directions: Floats) -> _Projection:
        rows = np.empty((anchors.shape[0], directions.shape[1]), np.float16)
        for block in blocks(anchors):
            rows[block] = anchors[block] @ directions
        return cls(directions, rows)

    def __getitem__(self, index: Any) -> Floats:
        rows: Floats = self._rows[index].astype(np.float32)
        return rows

    def first(self, columns: int) -> _Projection:
        """The same along the first directions."""
        return _Projection(self._directions[:, :columns], self._rows[:, :columns])

    def alone(self) -> _Projection:
        """The same without what it was cut from."""
        return _Projection(self._directions.copy(), self._rows.copy())

    def candidates(self, queries: Queries, count: int) -> Ids:
        """See `Index`."""
        rows = queries.rows @ self._directions
        scores, ids = search(rows, queries.own, self, count, blocks(self, share(8)))
        return np.where(scores == -np.inf, NO_ANCHOR, ids)


def _directions(anchors: Unit, wanted: Unit, columns: int, random: np.random.Generator) -> Floats:
    """Orthonormal directions (width, columns) along which the rows are longest, falling.

    By subspace iteration (Halko, Martinsson & Tropp 2011) on a sample of both kinds of rows.
    """
    samples = [(rows, _some(rows.shape[0], _LEARNT_FROM, random)) for rows in (anchors, wanted)]
    basis = random.standard_normal((anchors.shape[1], columns), np.float32)
    for _ in range(_PASSES):
        total = np.zeros(basis.shape)
        for rows, ids in samples:
            for some in np.array_split(ids, 1 + 4 * len(ids) * rows.shape[1] // block_bytes()):
                part = rows[some]
                total += part.T @ (part @ basis) / len(ids)
        squares, turn = np.linalg.eigh(total.T @ total)  # a QR is slow where other programs run
        lengths = np.sqrt(np.maximum(squares, _NO_DIRECTION * squares[-1]))
        basis = (total @ (turn / lengths)[:, ::-1]).astype(np.float32)
    return np.ascontiguousarray(basis)
