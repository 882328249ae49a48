"""`align`: a rotation, softened by ridge regression, fitted on pairs that it finds itself."""

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
from clpstream.memory import block_bytes, lean, scratch_directory
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
from clpstream.transfer.method import Table
from clpstream.transfer.rows import (
    Doubles,
    Floats,
    Ids,
    Rows,
    Selected,
    Unit,
    blocks,
    less,
    mean,
)

POOL = 3000
"""Tokens of each side that are paired: the most frequent ones, whose rows are trained best."""
_NEIGHBORHOOD = 10
"""Neighbours whose mean similarity tells a hub (CSLS, Conneau et al. 2018)."""
_PENALTY = 0.3
"""Of the regression, in units of XᵀX's mean eigenvalue."""
_QUIET = 0.3
"""Of the mean variance: directions in which words differ less are left to the regression."""
_KEPT = 2
"""Tensors of which XᵀY is kept; there may be more (of layers that predict several tokens)."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Align:
    """E_m = mean(E) + (H_m - mean(H)) W, with W between a rotation and a regression.

    W = V + (R - V) q²: s Q is the scaled rotation of `Procrustes`, R = (XᵀX + t I)⁻¹ XᵀY is `Ridge`
    with a penalty of 0.3, V = r ((1 - soften) s Q + soften R) is their mean, to which r gives the
    spread of s XQ. A rotation keeps the helper's geometry, a regression follows the anchors where
    they agree. Softened rows start lower in loss; shorter ones, as they would be without r, learn
    more slowly (bench/quality).

    q = k (C + k I)⁻¹, where C is the covariance of the source's frequent words and k is 0.3 of its
    mean variance, is close to 1 in the directions in which words hardly differ, and to 0 elsewhere.
    A model's last hidden states are largest there, so that a turned row's errors cost most: there
    W is R. It is left out in tensors that are wider than the words are many.

    rounds:
        how often W is used to find the pairs that it is fitted on next: of the 3,000 most frequent
        wanted tokens and the 3,000 most frequent words of the source, those that are each other's
        nearest (by CSLS, Conneau et al. 2018, arXiv 1710.04087), besides the shared tokens that
        keep their rows. It is the self-learning of Artetxe, Labaka & Agirre (2018, arXiv
        1805.06297): tokens that are written alike in two languages often mean different things, and
        a few hundred that don't are enough to begin with.

    In a source that has input embeddings and an output head, two tokens that mean the same do so in
    both: their cosines are added up before the nearest are taken.

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
            quiet = 2 * d_source**2 + 4 * matrix + 3 * block_bytes()
            most = max(fit_bytes(d_helper, d_source), finding, regression, quiet)
        else:
            kept = 20 * square + 16 * matrix
            quiet = 6 * d_source**2 + 8 * matrix + 3 * block_bytes()
            most = kept + max(fit_bytes(d_helper, d_source), finding, quiet)
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
        self.sure_squares = _kept(lambda: self.squares(Selected(x, self.sure)))
        self.unsure_squares = _kept(lambda: self.squares(Selected(x, self.unsure)))

    def __call__(self, anchors: Rows, words: Rows | None) -> LinearMap:
        """See `Fit`."""
        return next(_maps(self.method, [_View(self, anchors, words)]))

    def squares(self, x: Rows) -> Floats:
        """XᵀX in the frame, in the precision that products of blocks have."""
        return gram(Framed(x, self.frame))[0].astype(np.float32)


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
        self._words = nothing if words is None else words
        self._frequent = _pool(self._words)

    def keep(self) -> None:
        """From here on, keep what the sure anchors give: each fit needs it."""
        self._sure = _kept(self._sure)

    @property
    def pools(self) -> bool:
        """Whether there are wanted tokens and words to pair."""
        return bool(self._wanted.shape[0] and self._frequent.shape[0])

    def fit(self, found: tuple[Ids, Ids] | None, *, to_scale: bool) -> LinearMap:
        """The map of all anchors; or if pairs of the pools were found, of these and the sure
        anchors. to_scale: lengths count too, and not directions alone."""
        helper = self._helper
        if found is None:
            if not len(helper.unsure):
                return self._map(self._sure(), helper.sure_squares, to_scale)
            x, y = Selected(helper.x, helper.unsure), Selected(self._anchors, helper.unsure)
            squares = helper.unsure_squares
        else:
            x, y = Selected(self._wanted, found[0]), Selected(self._frequent, found[1])
            squares = partial(helper.squares, x)
        pairs = self._sure() + pairs_of(x, y, self._frames)
        return self._map(pairs, lambda: helper.sure_squares() + squares(), to_scale)

    def turned(self, found: tuple[Ids, Ids] | None) -> tuple[Rows, Rows]:
        """The pools' rows less their means, the wanted ones turned by the map of what was found:
        block by block, since held, they would lie beside their cosines."""
        center, other = self._means
        fitted = replace(self.fit(found, to_scale=False), x_mean=center)
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

    def _map(self, pairs: Pairs, squares: Callable[[], Floats], to_scale: bool) -> LinearMap:
        """The map of some pairs. squares: gives XᵀX of their rows in the frame; only once the
        rotation is found, beside which it need not lie."""
        turned, soften = rotation(pairs), np.float32(self._helper.method.soften)
        if not pairs.x_squares or not (soften or to_scale):
            return turned
        found, slopes = squares(), turned.slopes
        regression = _regression(pairs, found)
        before = _spread(slopes, pairs, found) if to_scale else 0.0
        for part in blocks(slopes):
            slopes[part] += soften * (regression[part] - slopes[part])
        if before and (after := _spread(slopes, pairs, found)):
            slopes *= np.float32(before / after)
        if to_scale and self._words.shape[0] >= slopes.shape[1]:
            arrays = device().arrays
            quiet = arrays.sent(_quiet(Framed(self._words, self._frames.y)))
            for part in blocks(slopes):
                rest = regression[part] - slopes[part]
                slopes[part] += arrays.product(arrays.product(rest, quiet), quiet)
        return turned


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
        yield views.pop(0).fit(found, to_scale=True)


def _kept(make: Callable[[], Found]) -> Callable[[], Found]:
    """What `make` gives is made once and kept, or each time where memory is short."""
    return make if lean() else cache(make)


def _aside(shape: tuple[int, int]) -> Floats:
    """Zeros, in a temporary file without a name where memory is short. Raises OSError if the disk
    is full."""
    if not lean():
        return np.zeros(shape, np.float32)
    with TemporaryFile(dir=scratch_directory()) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])  # else writing may kill
        return np.memmap(file, np.float32, "r+", shape=shape)


def _regression(pairs: Pairs, squares: Floats) -> Floats:
    """(XᵀX + t I)⁻¹ XᵀY: (d_helper, d_source).

    In float64, or where memory is short in float32: the penalty keeps the condition below 4 d.
    """
    kind = np.float32 if lean() else np.float64
    penalised = squares.astype(kind)
    subtract_mean(penalised, pairs.x, pairs.count)
    penalised[np.diag_indices_from(penalised)] += _PENALTY * pairs.x_squares / len(squares)
    inverted = inverse(penalised)
    inverted *= pairs.frames.y.scale / pairs.frames.x.scale
    arrays = device().arrays
    there = arrays.sent(inverted)
    slopes = _aside(pairs.products.shape)
    for columns in column_blocks(slopes):
        products = pairs.products[:, columns].astype(kind, copy=False)
        slopes[:, columns] = arrays.product(there, products)
    return slopes


def _quiet(rows: Rows) -> Floats:
    """k (C + k I)⁻¹ of the rows' covariance C, (d, d), with k a part of their mean variance."""
    arrays, center = device().arrays, mean(rows)
    covariance = _aside((rows.shape[1], rows.shape[1]))
    for block in blocks(rows):
        ours = less(rows[block], center)
        there = arrays.sent(ours)
        for columns in column_blocks(covariance):
            part = np.ascontiguousarray(ours[:, columns])
            covariance[:, columns] += arrays.product(there.T, part)
    level = np.float32(_QUIET * covariance.trace() / len(covariance))
    if not level:
        return covariance  # all rows are the same: no direction is quieter than others
    covariance[np.diag_indices_from(covariance)] += level
    quiet = inverse(covariance)
    quiet *= level
    return quiet


def _spread(slopes: Floats, pairs: Pairs, squares: Floats) -> float:
    """The root of the sum of the squares of XW, X being the pairs' rows less their mean, in their
    frame. squares: XᵀX without the mean taken out."""
    arrays = device().arrays
    there, total = arrays.sent(squares), 0.0
    for columns in column_blocks(slopes):
        part = np.ascontiguousarray(slopes[:, columns])
        total += float(np.vdot(part, arrays.product(there, part)))
        total -= pairs.count * float(np.square(pairs.x @ part).sum())
    return float(np.sqrt(max(0.0, total)))


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
