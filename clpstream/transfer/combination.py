"""Each missing row as a weighted sum of a few anchors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.device import device
from clpstream.memory import block_bytes, share
from clpstream.transfer.index import SearchReport
from clpstream.transfer.method import WithMean, heaviest
from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, bounds, check_count

_CACHED_BYTES = 1 << 18
"""Of sums that are made at once: few enough to stay in a processor's cache."""
_BYTES_OF_A_WEIGHT = 64
"""What it takes to bring one weight into order with the others."""


def held_bytes() -> int:
    """Of rows that are made at once: for each such part of them, the anchors are read again."""
    return share(8)


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
        """The weighted sums for the missing rows from `start` to `stop`: (n, width).

        Each anchor that has a weight there is read once, in pieces that bound the memory. A sum
        goes through its anchors in their order, one product after the other, so that the pieces
        change no bit of it.
        """
        there = anchors
        if len(self._indices) >= anchors.shape[0]:  # less may leave most of them out
            there = device().arrays.held(anchors)
        out = np.zeros((stop - start, anchors.shape[1]), np.float32)
        most = max(1, held_bytes() // _BYTES_OF_A_WEIGHT)
        row = start
        while row < stop:
            end = int(np.searchsorted(self._starts, self._starts[row] + most, "right")) - 1
            end = min(max(end, row + 1), stop)
            lines, indices, values = self._entries(row, end)
            some = out[row - start : end - start]
            if there is anchors:
                _add_read(some, lines, indices, values, anchors)
            else:
                _add_there(some, lines, indices, values, there)
            row = end
        return out

    def _entries(self, start: int, stop: int) -> tuple[Ids, Ids, Floats]:
        """The weights of some rows, each row's in the order of the anchors: the row's place, the
        anchor, and the weight."""
        part = slice(self._starts[start], self._starts[stop])
        lines = np.repeat(np.arange(stop - start), np.diff(self._starts[start : stop + 1]))
        indices = self._indices[part].astype(np.int64)
        order = np.lexsort((indices, lines))
        return lines[order], indices[order], self._values[part][order]


def _add_read(out: Floats, lines: Ids, indices: Ids, values: Floats, anchors: Rows) -> None:
    """out[lines[i]] += values[i] * anchors[indices[i]] for one i after the other; `lines` ascends.
    Each anchor is read once."""
    used, place = np.unique(indices, return_inverse=True)
    step = max(1, block_bytes() // (4 * max(1, anchors.shape[1])))
    for first in range(0, len(used), step):
        here = (place >= first) & (place < first + step)
        rows = anchors[used[first : first + step]]
        _add_products(out, lines[here], place[here] - first, values[here], rows)


def _add_products(out: Floats, lines: Ids, place: Ids, values: Floats, rows: Floats) -> None:
    """The same with rows in memory."""
    step = max(1, _CACHED_BYTES // (4 * max(1, rows.shape[1])))
    product = np.empty((step, rows.shape[1]), rows.dtype)  # float64 if the caller's are
    for some, turns in _turns(lines, step):
        sums = out[some]
        for at in turns:
            part = np.take(rows, place[at], axis=0, out=product[: len(at)], mode="clip")
            part *= values[at, None]
            sums[: len(at)] += part
        out[some] = sums


def _add_there(out: Floats, lines: Ids, indices: Ids, values: Floats, anchors: Any) -> None:
    """The same with rows on a GPU."""
    arrays = device().arrays
    for some, turns in _turns(lines, len(out)):
        sums = arrays.sent(out[some])
        for at in turns:
            rows = arrays.taken(anchors, indices[at])
            sums[: len(at)] += rows * arrays.sent(values[at, None])
        out[some] = arrays.fetched(sums)


def _turns(lines: Ids, step: int) -> Iterator[tuple[Ids, Iterator[Ids]]]:
    """For `step` of the `lines` at once, those with most entries first: which they are, and turn by
    turn an entry of each that has one left."""
    starts = np.flatnonzero(np.diff(lines, prepend=-1))
    counts = np.diff(starts, append=len(lines))
    longest_first = np.argsort(-counts, kind="stable")
    for first in range(0, len(starts), step):
        some = longest_first[first : first + step]
        begin, left = starts[some], counts[some]
        turns = (begin[: np.count_nonzero(left > nth)] + nth for nth in range(left[0]))
        yield lines[begin], turns


def gathered(
    groups: Sequence[Sequence[int]], weigh: Callable[[int], Sequence[float]], rows: Rows
) -> Rows:
    """A row for each group of rows of a matrix: their sum, with the weights of a group of so many.

    No list is made of them: there may be hundreds of thousands.
    """
    counts = np.fromiter(map(len, groups), np.int64, len(groups))
    total = int(counts.sum())
    indices = np.fromiter(chain.from_iterable(groups), np.int32, total)
    values = np.fromiter(chain.from_iterable(map(weigh, counts.tolist())), np.float32, total)
    return Combined(SparseWeights([(counts, indices, values)]), rows)


def gathering_bytes(groups: int, entries: int, width: int) -> int:
    """About how much memory `gathered` and its rows take: so many groups of so many in all."""
    made, ordered = 4 * groups * width, _BYTES_OF_A_WEIGHT * entries
    return 16 * groups + 8 * entries + min(made, held_bytes()) + min(ordered, held_bytes())


class Combined:
    """The combinations of an anchors' matrix as a matrix (n_missing, d_source), made by slices.

    More rows are made at once than a slice asks for, since each time the anchors are read again;
    the slices that follow are cut from them.
    """

    def __init__(self, weights: SparseWeights, anchors: Rows) -> None:
        self._weights = weights
        self._anchors = anchors
        self.shape = (len(weights), anchors.shape[1])
        self._begin = 0
        self._made = np.empty((0, anchors.shape[1]), np.float32)

    def __getitem__(self, index: Any) -> Floats:
        start, stop = bounds(index, self.shape[0])
        if not self._begin <= start <= stop <= self._begin + len(self._made):
            self._made = self._made[:0].copy()  # not two at a time
            ahead = start + held_bytes() // (4 * max(1, self.shape[1]))
            end = min(max(stop, ahead), self.shape[0])
            self._begin, self._made = start, self._weights.combine(start, end, self._anchors)
        found: Floats = self._made[start - self._begin : stop - self._begin].copy()
        return found


class PreparedSums:
    """See `Prepared`: a wanted row is a weighted sum of anchors' rows, and a share of their mean.

    search: how these anchors were found; None if by comparing all.
    """

    def __init__(
        self,
        weights: SparseWeights,
        shares: npt.NDArray[Any],
        lost: npt.NDArray[np.bool_],
        own: Ids,
        anchors: int,
        search: SearchReport | None = None,
    ) -> None:
        """shares: (n_wanted,) of the mean. lost: (n_wanted,) rows without direction. anchors: how
        many there are."""
        self._weights = weights
        self._shares = shares
        self._own = own
        self._anchors = anchors
        self.search = search
        self.guarded = {"no direction in the helper": np.flatnonzero(lost)}

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """See `Prepared.rows`."""
        check_count(anchors, self._anchors)
        return WithMean(Combined(self._weights, anchors), self._shares, anchors, self._own)

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`. Those of the sum, without their even part of the mean."""
        return [heaviest(*self._weights.of(row), top) for row in rows]
