"""Sums of all anchors' rows, each times its cosine with a wanted token, whose own is left out."""

from __future__ import annotations

import numpy as np

from clpstream.device import device
from clpstream.memory import block_bytes
from clpstream.transfer.method import NO_ANCHOR
from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, Unit, blocks, bounds


def total_of(units: Unit) -> Doubles:
    """The sum of unit rows, (d,): in float64, since they may cancel."""
    total = np.zeros(units.shape[1])
    for block in blocks(units):
        total += units[block].sum(axis=0, dtype=np.float64)
    return total


class ClosedSums:
    """The sums (n_wanted, d_source) as Ĥ_M (Ĥ_Aᵀ E_A), made by slices."""

    def __init__(self, wanted: Unit, units: Unit, own: Ids, anchors: Rows) -> None:
        self._wanted = wanted
        self._units = units
        self._own = own
        self._anchors = anchors
        self._projection = _projection(units, anchors)
        self.shape = (wanted.shape[0], anchors.shape[1])

    def __getitem__(self, index: slice) -> Floats:
        rows = self._wanted[index]
        arrays = device().arrays
        sums: Floats = arrays.product(rows, arrays.held(self._projection))
        own = self._own[index]
        shared, cosines = own_cosines(rows, self._units, own)
        if len(shared):
            sums[shared] -= cosines[:, None].astype(np.float32) * self._anchors[own[shared]]
        return sums


class PositiveSums:
    """The sums (n_wanted, d_source) with negative cosines as 0, made by slices.

    Without a closed form, all cosines are computed each time, block by block, and none is kept.
    """

    def __init__(self, wanted: Unit, units: Unit, own: Ids, anchors: Rows) -> None:
        self._wanted = wanted
        self._units = units
        self._own = own
        self._anchors = anchors
        self.shape = (wanted.shape[0], anchors.shape[1])

    def __getitem__(self, index: slice) -> Floats:
        start, stop = bounds(index, self.shape[0])
        queries, own = self._wanted[start:stop], self._own[start:stop]
        sums = np.zeros((stop - start, self.shape[1]), np.float32)
        arrays = device().arrays
        for block in blocks(_wider(self._units, self._anchors)):
            units, rows = arrays.sent(self._units[block]), arrays.sent(_read(self._anchors, block))
            step = max(1, block_bytes() // (4 * units.shape[0]))
            for first in range(0, len(queries), step):
                some = slice(first, first + step)
                cosines = arrays.sent(queries[some]) @ units.T
                cosines *= cosines > 0
                here = np.flatnonzero((own[some] >= block.start) & (own[some] < block.stop))
                cosines[arrays.sent(here), arrays.sent(own[some][here] - block.start)] = 0
                sums[some] += arrays.fetched(cosines @ rows)
        return sums


def own_cosines(rows: Floats, units: Unit, own: Ids) -> tuple[Ids, Doubles]:
    """Which of the unit rows have an own anchor, and their cosine with it."""
    shared = np.flatnonzero(own != NO_ANCHOR)
    if not len(shared):
        return shared, np.empty(0)
    found = units[own[shared]]
    return shared, np.einsum("ij,ij->i", rows[shared], found, dtype=np.float64)


def _projection(units: Unit, anchors: Rows) -> Floats:
    """Ĥ_Aᵀ E_A, (d_helper, d_source): products of blocks in float32, their sum in float64."""
    total = device().arrays.sum((units.shape[1], anchors.shape[1]))
    for block in blocks(_wider(units, anchors)):
        total.add(units[block], _read(anchors, block))
    return total.total().astype(np.float32)


def _read(anchors: Rows, block: slice) -> Floats:
    """Some rows in float32: on a GPU, both sides of a product must be."""
    return anchors[block].astype(np.float32, copy=False)


def _wider(units: Rows, anchors: Rows) -> Rows:
    return units if units.shape[1] >= anchors.shape[1] else anchors
