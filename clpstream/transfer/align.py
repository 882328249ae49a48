"""`align`: a rotation, softened by ridge regression, fitted on pairs that it finds itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.errors import TransferError
from clpstream.transfer.fitted import Pool, PreparedMap, fit_bytes
from clpstream.transfer.linear import LinearMap, Scaled, gram, pairs_of, rotation
from clpstream.transfer.rows import Floats, Ids, Rows, Selected

POOL = 3000
"""Tokens of each side that are paired: the most frequent ones, whose rows are trained best."""
_POOL_BYTES = 48 << 20
"""The most that the rows of one side take, whatever memory there is: it decides the rows."""
_NEIGHBORHOOD = 10
"""Neighbours whose mean similarity tells a hub (CSLS, Conneau et al. 2018)."""
_PENALTY = 1.0
"""Of the regression, in units of XᵀX's mean eigenvalue."""


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
    soften: float = 0.2
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
        return PreparedMap(self._fit, anchors, wanted, own)

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. With fewer, some directions turn anywhere."""
        return min(d_helper, d_source)

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        pool = 3 * _POOL_BYTES + 12 * POOL * POOL
        return fit_bytes(d_helper, d_source) + 16 * d_helper**2 + 32 * anchors + missing + pool

    def _fit(self, x: Rows, y: Rows, pool: Pool) -> LinearMap:
        fitted = self._map(x, y)
        if pool.words is None or 0 in (self.rounds, pool.words.shape[0], pool.wanted.shape[0]):
            return fitted
        count = min(POOL, max(1, _POOL_BYTES // (4 * max(x.shape[1], y.shape[1]))))
        wanted, words = pool.wanted[:count], pool.words[:count]
        if not (len(wanted) and len(words)):
            return fitted
        if not np.isfinite(words).all():
            raise TransferError("a frequent token's row in the source has NaN or Inf; repair it")
        for _ in range(self.rounds):
            ours, theirs = mutual(fitted.turned(wanted), words)
            fitted = self._map(
                _Joined(Selected(x, pool.sure), wanted[ours]),
                _Joined(Selected(y, pool.sure), words[theirs]),
            )
        return fitted

    def _map(self, x: Rows, y: Rows) -> LinearMap:
        pairs = pairs_of(x, y)
        turned = rotation(pairs)
        squares = gram(Scaled(x, pairs.x_mean, 1.0))
        mean_eigenvalue = squares.trace() / len(squares)
        if not (self.soften and mean_eigenvalue):
            return turned
        squares[np.diag_indices_from(squares)] += _PENALTY * mean_eigenvalue
        slopes = (1 - self.soften) * turned.slopes
        slopes += self.soften * np.linalg.solve(squares, pairs.products)
        return LinearMap(pairs.x_mean, pairs.y_mean, slopes.astype(np.float32))


def mutual(left: Floats, right: Floats) -> tuple[Ids, Ids]:
    """Places (k,) in left (n, d) and in right (m, d) of rows that are each other's nearest.

    By cosine of the rows less their means, with hubs held back by cross-domain similarity local
    scaling (Conneau et al. 2018, arXiv 1710.04087): twice the cosine, less each row's mean cosine
    with its ten nearest rows of the other side.
    """
    scores = _unit(left) @ _unit(right).T
    of_left, of_right = _closeness(scores), _closeness(scores.T)
    nearest = (2 * scores - of_right).argmax(axis=1)
    back = (2 * scores - of_left[:, None]).argmax(axis=0)
    found = np.flatnonzero(back[nearest] == np.arange(len(nearest)))
    return found, nearest[found]


def _closeness(scores: Floats) -> Floats:
    """The mean of each row's ten largest scores."""
    count = min(_NEIGHBORHOOD, scores.shape[1])
    closeness: Floats = np.partition(scores, -count, axis=1)[:, -count:].mean(axis=1)
    return closeness


def _unit(rows: Floats) -> Floats:
    # subtracted in float64, since little may be left of two large numbers
    centered = (rows - rows.mean(axis=0, dtype=np.float64)).astype(np.float32)
    norms = np.linalg.norm(centered, axis=1, keepdims=True)
    unit: Floats = centered / np.where(norms > 0, norms, 1)
    return unit


class _Joined:
    """The rows of a matrix, and then those of an array."""

    def __init__(self, first: Rows, rest: Floats) -> None:
        self._first = first
        self._rest = rest
        self.shape = (first.shape[0] + len(rest), first.shape[1])

    def __getitem__(self, index: slice) -> Floats:
        start, stop, _ = index.indices(self.shape[0])
        count = self._first.shape[0]
        return np.concatenate(
            [
                self._first[min(start, count) : min(stop, count)],
                self._rest[max(start - count, 0) : max(stop - count, 0)],
            ]
        )
