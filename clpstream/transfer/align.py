"""`align`: a rotation, tempered by a regression, fitted on pairs that it finds itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from tempfile import TemporaryFile
from typing import Any, ClassVar, TypeVar

import numpy as np

from clpstream.device import device
from clpstream.errors import TransferError
from clpstream.memory import block_bytes, give_back, lean, scratch_directory
from clpstream.transfer.fitted import PreparedMap, fit_bytes
from clpstream.transfer.learned import LITTLE, learned
from clpstream.transfer.linear import (
    Frame,
    Framed,
    Frames,
    LinearMap,
    Pairs,
    Scaled,
    column_blocks,
    inverse,
    pairs_of,
    rotation,
    subtract_mean,
)
from clpstream.transfer.method import Table
from clpstream.transfer.rows import (
    Doubles,
    Floats,
    Ids,
    Rows,
    Selected,
    Unit,
    blocks,
    mean,
)

POOL = 3000
"""Tokens of each side that are paired: the most frequent ones, whose rows are trained best."""
_NEIGHBORHOOD = 10
"""Neighbours whose mean similarity tells a hub (CSLS, Conneau et al. 2018)."""
_PENALTY = 0.3
"""Of the regression, in units of XᵀX's mean eigenvalue."""
_EXCESS = 7
"""Variance of turned rows, in that of the source's, from which a direction is the regression's."""
_FLOOR = 0.01
"""Of the mean variance: what is added to all directions, so that a float32 inverse is exact."""
_SHORTEST = 0.6
"""How long rows of noise are turned, in parts of the source's length."""
_KEPT = 2
"""Tensors of which XᵀY is kept; there may be more (of layers that predict several tokens)."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Align:
    """E_m = mean(E) + (H_m - mean(H)) W, with W between a rotation and a regression.

    W = c s Q + (R - c s Q) q: s Q is the scaled rotation of `Procrustes`, R = (XᵀX + t I)⁻¹ XᵀY is
    `Ridge` with a penalty of 0.3. A rotation keeps the helper's geometry, and rows as long as the
    source's, which learn faster than shorter ones; a regression follows the anchors.

    c is 1, but for a helper whose rows are noise in part, since it was trained for minutes: there
    it falls to 0.6 with what `learned` says of its wanted tokens, as noise costs more the longer it
    is.

    q = (7 C + M)⁻¹ M, where C is the covariance of the source's rows of the pairs, and M that of
    their turned rows, is an eighth in directions in which both vary as much, and close to 1 where
    turned rows vary much more: there the rotation can't be right. Such are those in which a source
    that was trained for long hardly varies (its last hidden states are largest there, so that
    errors cost most), and the few in which all rows of a helper that was trained for minutes
    differ.

    rounds:
        how often the rotation finds the pairs that are fitted on next: of the 3,000 most frequent
        wanted tokens and the 3,000 most frequent words of the source, those that are each other's
        nearest (by CSLS, Conneau et al. 2018, arXiv 1710.04087), besides the shared tokens that
        keep their rows. These rotations have the 512 directions of which most is known, where there
        are more. It is the self-learning of Artetxe, Labaka & Agirre (2018, arXiv
        1805.06297): tokens that are written alike in two languages often mean different things, and
        a few hundred that don't are enough to begin with.

    In a source that has input embeddings and an output head, two tokens that mean the same do so in
    both: their cosines are added up before the nearest are taken.

    The row of a shared token comes from the same map. Tensors of fewer than eight columns are made
    by `Ridge`, and a token whose helper row has no direction gets the mean, as in `Procrustes`.
    Raises TransferError for values out of range.
    """

    rounds: int = 3
    name: ClassVar[str] = "align"
    reads_helper: ClassVar[bool] = True
    learns_from_wanted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.rounds) is not int or self.rounds < 0:
            raise TransferError(f"rounds is {self.rounds!r}; it must be a number from 0 up")

    def prepare(
        self, anchors: Rows, wanted: Rows, own: Ids | None = None
    ) -> PreparedMap[SelfLearning]:
        """See `Method.prepare`."""
        return PreparedMap(partial(SelfLearning, self), anchors, wanted, own)

    def together(self, tables: Sequence[Table]) -> Iterator[Rows]:
        """The wanted rows of several tensors of one source, one after the other; each is prepared
        by this method."""
        made: list[tuple[PreparedMap[SelfLearning], bool]] = []
        views = []
        for table in tables:
            prepared = table.prepared
            assert isinstance(prepared, PreparedMap)
            made.append((prepared, prepared.fits(table.anchors)))
            if made[-1][1]:
                views.append(_View(prepared.fit, table.anchors, table.words))
        maps = _maps(self, views)
        for (prepared, fits), table in zip(made, tables, strict=True):
            yield prepared.mapped(next(maps)) if fits else prepared.rows(table.anchors)

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. With fewer, some directions turn anywhere."""
        return min(d_helper, d_source)

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        square, matrix = d_helper**2, d_helper * d_source
        widest = max(d_helper, d_source)
        at_once = min(POOL, max(1, block_bytes() // (4 * widest)))
        beside = 4 * at_once**2 + 32 * at_once * widest  # of cosines, and of rows as they are made
        finding = 4 * POOL**2 + max(beside, 3 * block_bytes())
        if lean():  # nothing is kept, but a map or what it is made from
            finding += 4 * matrix  # of other tensors they are on disk
            regression = 20 * square + 8 * matrix + 4 * block_bytes()
            tempering = 2 * d_source**2 + 4 * (matrix + square) + 4 * block_bytes()
            most = max(fit_bytes(d_helper, d_source), finding, regression, tempering)
        else:
            kept = 20 * square + 16 * matrix
            tempering = 6 * d_source**2 + 8 * matrix + 4 * block_bytes()
            most = kept + max(fit_bytes(d_helper, d_source), finding, tempering)
        return most + 32 * anchors + missing


class SelfLearning:
    """Fits maps with `Align`'s parameters. What the helper's anchors give is kept: it is the same
    for all tensors."""

    def __init__(self, method: Align, x: Rows, sure: Ids, wanted: Rows) -> None:
        self.method = method
        self.x = x
        self.sure = sure
        self.unsure = np.setdiff1d(np.arange(x.shape[0]), sure)
        self.wanted = wanted
        self.frame = Frame.of(x)
        signal = learned(wanted, x)
        self.length = 1.0 if signal is None else min(1.0, max(_SHORTEST, signal / LITTLE))
        self.sure_squares = _kept(lambda: _squares_of(self.frame, [Selected(x, self.sure)]))

    def __call__(self, anchors: Rows, words: Rows | None) -> LinearMap:
        """See `Fit`."""
        return next(_maps(self.method, [_View(self, anchors, words)]))


class _View:
    """A tensor of the source, with what its rows follow."""

    def __init__(self, helper: SelfLearning, anchors: Rows, words: Rows | None) -> None:
        self._helper = helper
        self._anchors = anchors
        self._frames = Frames(helper.frame, Frame.of(anchors))
        sure = helper.sure
        self._sure: Callable[[], Pairs] = partial(
            pairs_of, Selected(helper.x, sure), Selected(anchors, sure), self._frames
        )
        self._wanted = _pool(helper.wanted)
        nothing = np.empty((0, anchors.shape[1]), np.float32)
        self._frequent = _pool(nothing if words is None else words)

    def keep(self) -> None:
        """From here on, keep what the sure anchors give: each fit needs it."""
        self._sure = _kept(self._sure)

    @property
    def pools(self) -> bool:
        """Whether there are wanted tokens and words to pair."""
        return bool(self._wanted.shape[0] and self._frequent.shape[0])

    def fit(self, found: tuple[Ids, Ids] | None) -> LinearMap:
        """W, of all anchors; if pairs of the pools were found, of these and the sure anchors. The
        last thing that is asked of a view: what it has kept is given up."""
        helper, pairs = self._helper, self._pairs(found)
        del self._sure
        turned = rotation(pairs)
        if pairs.x_squares and pairs.y_squares:
            x, y = self._unsure(found)
            # not beside the rotation's own
            squares = helper.sure_squares() + _squares_of(helper.frame, [x])
            subtract_mean(squares, pairs.x, pairs.count)
            regression = _regression(pairs, squares)
            pairs = replace(pairs, products=np.empty((0, 0), np.float32))  # as large as a map
            rows = (Selected(self._anchors, helper.sure), y)
            give_back()  # holes of what was freed, in which no large matrix fits
            _temper(turned.slopes, regression, pairs, squares, rows, helper.length)
        return turned

    def _pairs(self, found: tuple[Ids, Ids] | None) -> Pairs:
        return self._sure() + pairs_of(*self._unsure(found), self._frames)

    def _unsure(self, found: tuple[Ids, Ids] | None) -> tuple[Rows, Rows]:
        """Both rows of the pairs that are no sure anchors."""
        helper = self._helper
        if found is None:
            return Selected(helper.x, helper.unsure), Selected(self._anchors, helper.unsure)
        return Selected(self._wanted, found[0]), Selected(self._frequent, found[1])

    def turned(self, found: tuple[Ids, Ids] | None) -> tuple[Rows, Rows]:
        """The pools' rows less their means, the wanted ones turned by the map of what was found:
        block by block, since held, they would lie beside their cosines."""
        center, other = self._means
        fitted = replace(rotation(self._pairs(found), rough=True), x_mean=center)
        if lean():  # to lie beside the fit of another
            slopes = _aside(fitted.slopes.shape)
            slopes[...] = fitted.slopes
            fitted = replace(fitted, slopes=slopes)
        return _Turned(fitted, self._wanted), Scaled(self._frequent, other, 1)

    @cached_property
    def _means(self) -> tuple[Doubles, Doubles]:
        center, other = mean(self._wanted), mean(self._frequent)
        if not np.isfinite(other).all():  # as a sum in float64 is if all rows are
            raise TransferError(
                "a frequent token's row in the source has NaN, Inf or a number that is too large "
                "to be added up; repair it"
            )
        return center, other


def _maps(method: Align, views: list[_View]) -> Iterator[LinearMap]:
    """The map of each view, fitted on pairs that are found in all of them. A view is given up with
    its map: what it has kept goes with it."""
    found = None
    for view in views[:_KEPT]:
        view.keep()
    if all(view.pools for view in views):
        for _ in range(method.rounds):
            # all maps first: beside a fit they take less than the cosines
            found = mutual(similarities([view.turned(found) for view in views]))
    while views:
        yield views.pop(0).fit(found)


def _kept(make: Callable[[], Found]) -> Callable[[], Found]:
    """What `make` gives is made once and kept, or each time where memory is short."""
    return make if lean() else cache(make)


def _temper(
    slopes: Floats,
    regression: Floats,
    pairs: Pairs,
    squares: Floats,
    rows: Sequence[Rows],
    length: float,
) -> None:
    """From the rotation's slopes s Q to those of W, in their place.

    regression: R in the frames, changed. squares: XᵀX of the pairs less their mean, in the frame.
    rows: all of the pairs in the source. length: c, of the rotation's part.
    """
    framed = np.float32(pairs.frames.x.scale / pairs.frames.y.scale)  # a power of two: exact
    slopes *= framed
    arrays = device().arrays
    there, turn = arrays.sent(squares), arrays.sent(slopes)
    both = _squares_of(pairs.frames.y, rows)
    subtract_mean(both, pairs.y, pairs.count)
    both *= _EXCESS
    for columns in column_blocks(both):
        both[:, columns] += arrays.fetched(turn.T @ (there @ turn[:, columns]))
    both[np.diag_indices_from(both)] += _FLOOR * both.trace() / len(both)
    inverted = arrays.sent(inverse(both))
    for part in blocks(slopes):
        rotated = np.float32(length) * slopes[part]
        rest = arrays.sent(regression[part] - rotated)
        regression[part] = rotated + arrays.fetched(rest @ inverted @ turn.T @ there @ turn)
    np.divide(regression, framed, out=slopes)


def _aside(shape: tuple[int, int]) -> Floats:
    """Zeros, in a temporary file without a name where memory is short. Raises OSError if the disk
    is full."""
    if not lean():
        return np.zeros(shape, np.float32)
    with TemporaryFile(dir=scratch_directory()) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])  # else writing may kill
        return np.memmap(file, np.float32, "r+", shape=shape)


def _regression(pairs: Pairs, squares: Floats) -> Floats:
    """(XᵀX + t I)⁻¹ XᵀY in the frames: (d_helper, d_source).

    In float64, or where memory is short in float32: the penalty keeps the condition below 4 d.
    """
    kind = np.float32 if lean() else np.float64
    penalised = squares.astype(kind)
    penalised[np.diag_indices_from(penalised)] += _PENALTY * pairs.x_squares / len(squares)
    arrays = device().arrays
    there = arrays.sent(inverse(penalised))
    slopes = _aside(pairs.products.shape)
    for columns in column_blocks(slopes):
        products = pairs.products[:, columns].astype(kind, copy=False)
        slopes[:, columns] = arrays.product(there, products)
    return slopes


def _squares_of(frame: Frame, tables: Sequence[Rows]) -> Floats:
    """XᵀX, (d, d), of all tables' rows in a frame; half of it is made, since it is symmetric."""
    arrays, width = device().arrays, tables[0].shape[1]
    squares = _aside((width, width))
    for rows in tables:
        framed = Framed(rows, frame)
        for block in blocks(framed):
            ours = framed[block]
            there = arrays.sent(ours)
            for columns in column_blocks(squares):
                part = np.ascontiguousarray(ours[:, columns])
                above = there[:, : columns.stop].T
                squares[: columns.stop, columns] += arrays.product(above, part)
    for columns in column_blocks(squares):
        squares[columns, : columns.start] = squares[: columns.start, columns].T
    return squares


def _pool(rows: Rows) -> Rows:
    """The first rows. They are read whenever they are needed: held, they would lie beside the
    eigenvectors of each fit."""
    return Selected(rows, np.arange(min(POOL, rows.shape[0])))


class _Turned:
    """Rows (n, d_helper) less the x_mean of a map, mapped: (n, d_source)."""

    def __init__(self, fitted: LinearMap, rows: Rows) -> None:
        self._fitted = fitted
        self._rows = rows
        self.shape = (rows.shape[0], fitted.slopes.shape[1])

    def __getitem__(self, index: Any) -> Floats:
        return self._fitted.turned(self._rows[index])


def mutual(scores: Floats) -> tuple[Ids, Ids]:
    """Lines (k,) and columns (k,) of similarities (n, m) that are each other's nearest.

    Hubs are held back by cross-domain similarity local scaling (Conneau et al. 2018, arXiv
    1710.04087): twice the similarity, less each line's and column's mean of its ten largest.
    """
    of_left, of_right = _closeness(scores), _closeness(scores.T)
    nearest, back = _nearest(scores, of_right), _nearest(scores.T, of_left)
    found = np.flatnonzero(back[nearest] == np.arange(len(nearest)))
    return found, nearest[found]


def similarities(spaces: Sequence[tuple[Rows, Rows]]) -> Floats:
    """Cosines (n, m) of all rows on the left (n, d) with all on the right (m, d), added up over
    spaces. The left ones are made once, the right ones read for each block of them."""
    units = [(Unit(left, None), Unit(right, None)) for left, right in spaces]
    scores = np.zeros([side.shape[0] for side in units[0]], np.float32)
    for left, right in units:
        for ours in blocks(left):
            rows = left[ours]
            for theirs in blocks(right):
                scores[ours, theirs] += device().arrays.product(rows, right[theirs].T)
    return scores


def _closeness(scores: Floats) -> Floats:
    """The mean of each line's ten largest scores, (n,)."""
    count = min(_NEIGHBORHOOD, scores.shape[1])
    closeness = np.empty(len(scores), np.float32)
    for block in blocks(scores):
        best = np.partition(scores[block], -count, axis=1)[:, -count:]
        closeness[block] = best.mean(axis=1)
    return closeness


def _nearest(scores: Floats, closeness: Floats) -> Ids:
    """The place of each line's largest score, doubled, less the closeness of the other side."""
    places = np.empty(len(scores), np.int64)
    for block in blocks(scores):
        places[block] = (2 * scores[block] - closeness).argmax(axis=1)
    return places
