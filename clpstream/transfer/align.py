"""`align`: a rotation, softened by ridge regression, fitted on pairs that it finds itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any, ClassVar, TypeVar

import numpy as np

from clpstream.device import device
from clpstream.errors import TransferError
from clpstream.memory import block_bytes, lean
from clpstream.transfer.fitted import PreparedMap, fit_bytes
from clpstream.transfer.linear import (
    Frame,
    Framed,
    Frames,
    LinearMap,
    Pairs,
    Scaled,
    column_blocks,
    gram,
    inverse,
    pairs_of,
    rotation,
    subtract_mean,
)
from clpstream.transfer.rows import Floats, Ids, Rows, Selected, Unit, blocks, mean

POOL = 3000
"""Tokens of each side that are paired: the most frequent ones, whose rows are trained best."""
_NEIGHBORHOOD = 10
"""Neighbours whose mean similarity tells a hub (CSLS, Conneau et al. 2018)."""
_PENALTY = 1.0
"""Of the regression, in units of XᵀX's mean eigenvalue."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Align:
    """E_m = mean(E) + (H_m - mean(H)) W, with W between a rotation and a regression.

    W = (1 - soften) s Q + soften (XᵀX + t I)⁻¹ XᵀY: s Q is the scaled rotation of `Procrustes`, the
    rest is `Ridge` with a penalty of 1. A rotation keeps the helper's geometry, a regression is
    short where the anchors disagree. Softened rows start lower in loss, rotated ones are a little
    lower after some steps of training (bench/quality).

    rounds:
        how often W is used to find the pairs that it is fitted on next: of the 3,000 most frequent
        wanted tokens and the 3,000 most frequent words of the source, those that are each other's
        nearest (by CSLS, Conneau et al. 2018, arXiv 1710.04087), besides the shared tokens that
        keep their rows. It is the self-learning of Artetxe, Labaka & Agirre (2018, arXiv
        1805.06297): tokens that are written alike in two languages often mean different things, and
        a few hundred that don't are enough to begin with.

    The row of a shared token comes from the same map. Tensors of fewer than eight columns are made
    by `Ridge`, and a token whose helper row has no direction gets the mean, as in `Procrustes`.
    Raises TransferError for values out of range.
    """

    rounds: int = 3
    soften: float = 0.3
    name: ClassVar[str] = "align"
    reads_helper: ClassVar[bool] = True
    learns_from_wanted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.rounds) is not int or self.rounds < 0:
            raise TransferError(f"rounds is {self.rounds}; it must be a number from 0 up")
        if not 0 <= self.soften <= 1:
            raise TransferError(f"soften is {self.soften}; it must be from 0 to 1")

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> PreparedMap:
        """See `Method.prepare`."""
        return PreparedMap(
            lambda x, sure, wanted: _SelfLearning(self, x, sure, wanted), anchors, wanted, own
        )

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. With fewer, some directions turn anywhere."""
        return min(d_helper, d_source)

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        square, matrix = d_helper**2, d_helper * d_source
        finding = 4 * POOL**2 + 5 * block_bytes()
        if lean():  # nothing is kept, but a map or what it is made from
            finding += 4 * matrix
            regression = 20 * square + 8 * matrix + 4 * block_bytes()
            most = max(fit_bytes(d_helper, d_source), finding, regression)
        else:
            kept = 12 * square + 8 * matrix
            most = kept + max(fit_bytes(d_helper, d_source), finding)
        return most + 32 * anchors + missing


class _SelfLearning:
    """Fits maps with `Align`'s parameters. What the helper's anchors give is kept: it is the same
    for all tensors."""

    def __init__(self, method: Align, x: Rows, sure: Ids, wanted: Rows) -> None:
        self._method = method
        self._x = x
        self._sure = sure
        self._unsure = np.setdiff1d(np.arange(x.shape[0]), sure)
        self._wanted = wanted
        self._frame = Frame.of(x)
        self._sure_squares = _kept(lambda: self._squares(Selected(x, self._sure)))
        self._unsure_squares = _kept(lambda: self._squares(Selected(x, self._unsure)))

    def __call__(self, anchors: Rows, words: Rows | None) -> LinearMap:
        frames = Frames(self._frame, Frame.of(anchors))
        sure = _kept(
            lambda: pairs_of(Selected(self._x, self._sure), Selected(anchors, self._sure), frames)
        )
        fitted = self._of_all(sure, anchors, frames)
        if words is None:
            return fitted
        wanted, frequent = _pool(self._wanted), _pool(words)
        if not (wanted.shape[0] and frequent.shape[0]):
            return fitted
        center, other = mean(wanted), mean(frequent)
        if not np.isfinite(other).all():  # as a sum in float64 is if all rows are
            raise TransferError("a frequent token's row in the source has NaN or Inf; repair it")
        known = Scaled(frequent, other, 1)
        for _ in range(self._method.rounds):
            # turned block by block: held, their rows would lie beside their cosines
            ours, theirs = mutual(_Turned(replace(fitted, x_mean=center), wanted), known)
            del fitted  # as large as the next one
            x, y = Selected(wanted, ours), Selected(frequent, theirs)
            fitted = self._of_sure_and(x, y, partial(self._squares, x), sure, frames)
        return fitted

    def _of_all(self, sure: Callable[[], Pairs], anchors: Rows, frames: Frames) -> LinearMap:
        """The map of all anchors, sure or not."""
        if not len(self._unsure):
            return self._map(sure(), self._sure_squares)
        x, y = Selected(self._x, self._unsure), Selected(anchors, self._unsure)
        return self._of_sure_and(x, y, self._unsure_squares, sure, frames)

    def _of_sure_and(
        self,
        x: Rows,
        y: Rows,
        squares: Callable[[], Floats],
        sure: Callable[[], Pairs],
        frames: Frames,
    ) -> LinearMap:
        """The map of the sure pairs and others, x and y, of which `squares` gives XᵀX."""
        pairs = sure() + pairs_of(x, y, frames)
        return self._map(pairs, lambda: self._sure_squares() + squares())

    def _squares(self, x: Rows) -> Floats:
        """XᵀX in the frame, in the precision that products of blocks have."""
        return gram(Framed(x, self._frame))[0].astype(np.float32)

    def _map(self, pairs: Pairs, squares: Callable[[], Floats]) -> LinearMap:
        """The map of some pairs. squares: gives XᵀX of their rows in the frame; only once the
        rotation is found, beside which it need not lie."""
        turned, soften = rotation(pairs), np.float32(self._method.soften)
        if soften and pairs.x_squares:
            turned.slopes[...] *= 1 - soften
            _add_regression(turned.slopes, soften, pairs, squares())
        return turned


def _kept(make: Callable[[], Found]) -> Callable[[], Found]:
    """What `make` gives is made once and kept, or each time where memory is short."""
    return make if lean() else cache(make)


def _add_regression(slopes: Floats, part: np.float32, pairs: Pairs, squares: Floats) -> None:
    """Add a part of (XᵀX + t I)⁻¹ XᵀY to the slopes, in place.

    In float64, or where memory is short in float32: the penalty keeps the condition below d + 1.
    """
    kind = np.float32 if lean() else np.float64
    penalised = squares.astype(kind)
    subtract_mean(penalised, pairs.x, pairs.count)
    penalised[np.diag_indices_from(penalised)] += _PENALTY * pairs.x_squares / len(squares)
    inverted = inverse(penalised)
    inverted *= part * pairs.frames.y.scale / pairs.frames.x.scale
    arrays = device().arrays
    there = arrays.sent(inverted)
    for columns in column_blocks(slopes):
        products = pairs.products[:, columns].astype(kind, copy=False)
        slopes[:, columns] += arrays.product(there, products)


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


def mutual(left: Rows, right: Rows) -> tuple[Ids, Ids]:
    """Places (k,) in left (n, d) and in right (m, d) of rows that are each other's nearest.

    The rows are less their means. By their cosine, with hubs held back by cross-domain similarity
    local scaling (Conneau et al. 2018, arXiv 1710.04087): twice the cosine, less each row's mean
    cosine with its ten nearest rows of the other side.
    """
    scores = _cosines(left, right)
    of_left, of_right = _closeness(scores), _closeness(scores.T)
    nearest, back = _nearest(scores, of_right), _nearest(scores.T, of_left)
    found = np.flatnonzero(back[nearest] == np.arange(len(nearest)))
    return found, nearest[found]


def _cosines(left: Rows, right: Rows) -> Floats:
    """Of all rows on the left (n, d) with all on the right (m, d): (n, m). The left ones are made
    once, the right ones read for each block of them."""
    scores = np.empty((left.shape[0], right.shape[0]), np.float32)
    left, right = Unit(left, None), Unit(right, None)
    for ours in blocks(left):
        rows = left[ours]
        for theirs in blocks(right):
            scores[ours, theirs] = device().arrays.product(rows, right[theirs].T)
    return scores


def _closeness(scores: Floats) -> Floats:
    """The mean of each row's ten largest scores, (n,)."""
    count = min(_NEIGHBORHOOD, scores.shape[1])
    closeness = np.empty(len(scores), np.float32)
    for block in blocks(scores):
        best = np.partition(scores[block], -count, axis=1)[:, -count:]
        closeness[block] = best.mean(axis=1)
    return closeness


def _nearest(scores: Floats, closeness: Floats) -> Ids:
    """The place of each row's largest score, doubled, less the closeness of the other side."""
    places = np.empty(len(scores), np.int64)
    for block in blocks(scores):
        places[block] = (2 * scores[block] - closeness).argmax(axis=1)
    return places
