"""`procrustes`: a rotation with one scale from the helper's space to the source's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.errors import TransferError
from clpstream.transfer.fitted import PreparedMap, fit_bytes
from clpstream.transfer.linear import (
    Frame,
    Frames,
    LinearMap,
    Pairs,
    cosines,
    pairs_of,
    rotation,
)
from clpstream.transfer.rows import Ids, Rows, Selected

_ENOUGH = 0.25
"""Of the squares: what is left of a sum must be more, or rounding of the whole may show."""


@dataclass(frozen=True)
class Procrustes:
    """E_m = mean(E) + s (H_m - mean(H)) Q: orthogonal Procrustes (Schönemann 1966).

    Q = U Vᵀ, from the singular vectors of XᵀY, turns the anchors' rows X in the helper as close to
    those in a tensor of the source, Y, as a rotation can, both less their means; s gives them the
    spread of Y. A rotation keeps the helper's geometry, which averages shrink. It is how the word
    vectors of two languages are aligned (Artetxe, Labaka & Agirre 2016).

    trim, rounds:
        in each of some rounds this part of the anchors, those whose turned rows agree least with
        their own by cosine, is left out of the next fit: tokens that are written alike in two
        languages often mean different things. Of rotations that only judge, the 512 directions of
        which most is known are made, where there are more.

    The row of a shared token comes from the same map, to which its own anchor has added one pair of
    many: leaving it out made no target better where it was measured (bench/quality). Tensors of
    fewer than eight columns (a bias has one) are no space to turn: `Ridge` makes their rows. A
    token whose helper row has no direction gets the mean of the anchors that the map is from.
    Raises TransferError for values out of range.
    """

    trim: float = 0.15
    rounds: int = 2
    name: ClassVar[str] = "procrustes"
    reads_helper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 1:
            raise TransferError(f"trim is {self.trim}; it must be from 0 to below 1")
        if type(self.rounds) is not int or self.rounds < 0:
            raise TransferError(f"rounds is {self.rounds!r}; it must be a number from 0 up")

    def prepare(
        self, anchors: Rows, wanted: Rows, own: Ids | None = None
    ) -> PreparedMap[_Trimming]:
        """See `Method.prepare`."""
        return PreparedMap(lambda x, _sure, _wanted: _Trimming(self, x), anchors, wanted, own)

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. With fewer, some directions turn anywhere."""
        return min(d_helper, d_source)

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        return fit_bytes(d_helper, d_source) + 32 * anchors + missing


class _Trimming:
    """Fits maps with `Procrustes`' parameters. Of anchors that are left out, the products alone are
    subtracted from those of all."""

    def __init__(self, method: Procrustes, x: Rows) -> None:
        self._rounds = method.rounds if method.trim else 0
        self._kept = 1 - method.trim
        self._x = x
        self._frame = Frame.of(x)

    def __call__(self, anchors: Rows, words: Rows | None) -> LinearMap:
        x, y, frames = self._x, anchors, Frames(self._frame, Frame.of(anchors))
        kept, pairs = np.arange(x.shape[0]), pairs_of(x, y, frames)
        for _ in range(self._rounds):
            turned = rotation(pairs, rough=True)
            agreement = cosines(turned, Selected(x, kept), Selected(y, kept))
            best = np.argsort(-agreement, kind="stable")
            count = max(1, round(len(kept) * self._kept))
            dropped, kept = np.sort(kept[best[count:]]), np.sort(kept[best[:count]])
            pairs = without(pairs, dropped, kept, x, y)
        return rotation(pairs)


def without(pairs: Pairs, dropped: Ids, kept: Ids, x: Rows, y: Rows) -> Pairs:
    """What is known of the kept ones of pairs, from what is known of all.

    By subtraction of the dropped ones, unless little is left: rounding would be much of it.
    """
    if len(dropped) < len(kept):
        left = pairs - pairs_of(Selected(x, dropped), Selected(y, dropped), pairs.frames)
        if (
            left.x_squares > _ENOUGH * pairs.x_squares
            and left.y_squares > _ENOUGH * pairs.y_squares
        ):
            return left
    return pairs_of(Selected(x, kept), Selected(y, kept), pairs.frames)
