"""`omp`: a wanted row is a sparse combination of anchors, found by orthogonal matching pursuit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.errors import TransferError
from clpstream.memory import block_bytes, share
from clpstream.transfer.combination import PreparedSums, SparseWeights, compact
from clpstream.transfer.method import own_anchors
from clpstream.transfer.pursuit import JITTER, Room, pursue
from clpstream.transfer.rows import (
    Doubles,
    Floats,
    Ids,
    Rows,
    Unit,
    blocks,
    check_shapes,
    mean,
)


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
            raise TransferError(f"atoms is {self.atoms!r}; it must be a number from 1 up")

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> PreparedSums:
        """See `Method.prepare`."""
        check_shapes(anchors, wanted)
        own = own_anchors(own, wanted.shape[0], anchors.shape[0])
        center = mean(anchors) if self.center else None
        exact, queries = Unit(anchors, center), Unit(wanted, center)
        ids, counts, lost = self._chosen(exact, queries, own)
        parts, rest = [], np.zeros(wanted.shape[0])
        for batch in blocks(wanted):
            values = _coefficients(wanted[batch], anchors, center, ids[batch], counts[batch])
            there = np.arange(ids.shape[1]) < counts[batch, None]
            rest[batch] = 1 - values.sum(axis=1)
            parts.append(compact(counts[batch], ids[batch][there], values[there]))
        if not self.center:
            rest[~lost] = 0
        return PreparedSums(SparseWeights(parts), rest, lost, own, anchors.shape[0])

    def _chosen(self, exact: Unit, queries: Unit, own: Ids) -> tuple[Any, Ids, Any]:
        """As `pursue`, for all rows; and which of them (n,) have no direction."""
        (count, width), wanted = exact.shape, queries.shape[0]
        most = min(self.atoms, count, width)
        ids = np.zeros((wanted, most), np.int32)
        counts, lost = np.zeros(wanted, np.int64), np.zeros(wanted, bool)
        kept = Room.of(count, width, wanted * most).kept(exact, most)
        for batch in blocks(queries):
            rows = queries[batch]
            lost[batch] = ~rows.any(axis=1)
            ids[batch], counts[batch] = pursue(rows, own[batch], kept, most)
        return ids, counts, lost

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. With fewer, all anchors are in every row."""
        return self.atoms

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        most = max(1, min(self.atoms, anchors, d_helper))
        room = Room.of(anchors, d_helper, missing * most)
        batch = min(4 * missing * most * d_helper, room.bases_bytes())
        foreseen = 4 * most * (anchors + d_helper) + share(8) if room.gram else 0
        pursuit = room.bytes(anchors, d_helper) + foreseen + 2 * batch + 3 * block_bytes()
        weights = 12 * missing * most  # places while they are found, then 8 bytes each
        return weights + max(pursuit, 6 * block_bytes())


def _coefficients(
    wanted: Floats, anchors: Rows, center: Doubles | None, ids: Any, counts: Ids
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
        gram[:, np.arange(most), np.arange(most)] = 1 + JITTER
        goal = chosen @ (wanted[part] - base)[..., None]
        values[part] = np.linalg.solve(gram, goal)[..., 0] / norms
    return values
