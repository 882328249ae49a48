"""`omp`: a wanted row is a sparse combination of anchors, found by orthogonal matching pursuit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.errors import TransferError
from clpstream.memory import block_bytes
from clpstream.transfer.combination import Combined, SparseWeights, compact
from clpstream.transfer.method import WithMean, heaviest, own_anchors
from clpstream.transfer.pursuit import batch_bytes, batch_size, kept, kept_bytes, pursue
from clpstream.transfer.rows import (
    Doubles,
    Floats,
    Ids,
    Rows,
    Unit,
    check_count,
    check_shapes,
    mean,
)

_JITTER = 1e-13
"""Added to squared norms of 1, so that equations are solved where rounding makes them singular."""


@dataclass(frozen=True)
class Omp:
    """The `atoms` anchors that together come closest to the token's helper row, by least squares.

    Orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad 1993) for vocabularies: Goddard &
    Fernandes Neto 2025, arXiv 2506.06607, whose 64 atoms are the default, as in
    mergekit-tokensurgeon. Each step takes the anchor whose direction has the largest cosine, of
    either sign, with what is left of the row, and fits all coefficients c again; it ends early
    where nothing is left. Then E_m = sum_a c_a E_a.

    center:
        rows are taken as differences from the anchors' mean, in both models: E_m = mean(E) +
        sum_a c_a (E_a - mean(E)).

    A token whose helper row has no direction (it is zero, or the mean itself) gets the mean of
    all anchors. The row of a shared token is made as if its own anchor were not there, except that
    the mean that is subtracted from the helper's rows stays that of all anchors. Raises
    TransferError for a number of atoms below 1.
    """

    atoms: int = 64
    center: bool = True
    name: ClassVar[str] = "omp"
    reads_helper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.atoms) is not int or self.atoms < 1:
            raise TransferError(f"atoms is {self.atoms}; it must be a number from 1 up")

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> PreparedOmp:
        """See `Method.prepare`."""
        check_shapes(anchors, wanted)
        own = own_anchors(own, wanted.shape[0], anchors.shape[0])
        center = mean(anchors) if self.center else None
        exact, queries = Unit(anchors, center), Unit(wanted, center)
        units = kept(exact)
        most = min(self.atoms, *anchors.shape)
        parts, rest = [], np.zeros(wanted.shape[0])
        lost = np.zeros(wanted.shape[0], bool)
        step = batch_size(most, anchors.shape[1])
        for start in range(0, wanted.shape[0], step):
            batch = slice(start, start + step)
            rows = queries[batch]
            lost[batch] = ~rows.any(axis=1)
            ids, counts = pursue(rows, own[batch], units, exact, most)
            values = _coefficients(wanted[batch], anchors, center, ids, counts)
            there = np.arange(ids.shape[1]) < counts[:, None]
            rest[batch] = 1 - values.sum(axis=1)
            parts.append(compact(counts, ids[there], values[there]))
        if not self.center:
            rest[~lost] = 0
        return PreparedOmp(SparseWeights(parts), rest, lost, own, anchors.shape[0])

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. With fewer, all anchors are in every row."""
        return self.atoms

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        units = 4 * anchors * d_helper
        batch = min(4 * missing * self.atoms * d_helper, batch_bytes())
        weights = 16 * missing * min(self.atoms, d_helper)
        return (units if units <= kept_bytes() else 0) + 2 * batch + weights + 6 * block_bytes()


class PreparedOmp:
    """See `Prepared`."""

    def __init__(
        self, weights: SparseWeights, rest: Doubles, lost: Any, own: Ids, anchors: int
    ) -> None:
        """rest: (n_wanted,) the share of the anchors' mean. lost: (n_wanted,) without direction."""
        self._weights = weights
        self._rest = rest
        self._own = own
        self._anchors = anchors
        self.guarded = {"no direction in the helper": np.flatnonzero(lost)}

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """See `Prepared.rows`."""
        check_count(anchors, self._anchors)
        return WithMean(Combined(self._weights, anchors), self._rest, anchors, self._own)

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`. Those chosen, without their even share in the mean."""
        return [heaviest(*self._weights.of(row), top) for row in rows]


def _coefficients(
    wanted: Floats, anchors: Rows, center: Doubles | None, ids: Ids, counts: Ids
) -> Doubles:
    """Least squares in float64, (n, k), of the first `counts` (n,) of the anchors `ids` (n, k).

    By the normal equations: the pursuit chooses no anchor that the others make up but for rounding.
    """
    base = np.zeros(anchors.shape[1]) if center is None else center
    most, width = ids.shape[1], anchors.shape[1]
    values = np.zeros(ids.shape)
    step = max(1, block_bytes() // (8 * max(1, most) * width))
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        there = np.arange(most) < counts[part, None]
        chosen = anchors[ids[part].ravel()].reshape(-1, most, width) - base
        norms = np.where(there, np.linalg.norm(chosen, axis=2), 1)
        chosen = np.where(there[..., None], chosen / norms[..., None], 0)
        gram = chosen @ chosen.swapaxes(1, 2)
        gram[:, np.arange(most), np.arange(most)] = 1 + _JITTER
        goal = chosen @ (wanted[part] - base)[..., None]
        values[part] = np.linalg.solve(gram, goal)[..., 0] / norms
    return values
