"""`procrustes`: a rotation with one scale from the helper's space to the source's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.errors import TransferError
from clpstream.transfer.fitted import Pool, PreparedMap, fit_bytes
from clpstream.transfer.linear import LinearMap, cosines, pairs_of, rotation
from clpstream.transfer.rows import Ids, Rows, Selected


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
        languages often mean different things.

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
            raise TransferError(f"rounds is {self.rounds}; it must be a number from 0 up")

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
        return fit_bytes(d_helper, d_source) + 32 * anchors + missing

    def _fit(self, x: Rows, y: Rows, pool: Pool) -> LinearMap:
        kept = np.arange(x.shape[0])
        fitted = rotation(pairs_of(x, y))
        for _ in range(self.rounds if self.trim else 0):
            agreement = cosines(fitted, Selected(x, kept), Selected(y, kept))
            count = max(1, round(len(kept) * (1 - self.trim)))
            kept = np.sort(kept[np.argsort(-agreement, kind="stable")[:count]])
            fitted = rotation(pairs_of(Selected(x, kept), Selected(y, kept)))
        return fitted
