"""Which anchors orthogonal matching pursuit chooses, for many rows at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clpstream.device import Arrays, device
from clpstream.memory import block_bytes, free_scratch, max_memory, share
from clpstream.transfer.gram import GRAM_ERROR, Gram, gram_bytes
from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, Unit, blocks

if TYPE_CHECKING:
    from clpstream.gpu import GpuArrays

_LARGEST_BATCH = 1024

_NOTHING = 1e-5
"""What is left of a unit row, or its cosine with an anchor, that may be float32's rounding."""
_WEAK = 0.3
"""Norm of what a basis leaves of a unit row, below which it is made orthogonal a second time."""
_LARGE = 1 << 20
"""Entries of the anchors' rows, below which a product with all of them is soon made."""
_SMALL = 0.05
"""Norm of what is left of a unit row, below which its products are taken from itself again."""
_SLICE = 128
"""Anchors whose products with a basis lie together: so few that BLAS takes one thread for them.

Threads that wait for one another in each step cost many times what they save on a busy machine.
"""
_FEW_RIVALS = 64
"""How many anchors the rounding of a Gram matrix may leave to be compared exactly."""
_RESOLUTION = 2e-6
"""Cosines of unit rows that are closer than this may come out of float32 in either order."""
_EQUAL = 1e-10
"""Cosines that are closer than this are the same but for float64's rounding."""
JITTER = 1e-13
"""Added to squared norms of 1, so that equations are solved where rounding makes them singular."""
_MOST_RIVALS = 1024
"""How many anchors are compared in float64 where float32 can't tell which is first."""


@dataclass(frozen=True)
class Anchors:
    """The anchors' unit rows, as a pursuit needs them.

    units: float32, in memory if there is room. exact: the same in float64 on demand. gram: their
    products, if there is room and they are worth it. at_once: how many rows are pursued without.
    gpu: where units are, if they are not in numpy: there, products of whole batches cost less than
    a Gram matrix.
    """

    units: Any
    exact: Unit
    gram: Gram | None
    at_once: int
    gpu: GpuArrays | None = None


@dataclass(frozen=True)
class Room:
    """What of the anchors is kept, and where: it changes speed alone.

    gram: whether their Gram matrix is. in_memory: whether there, and not in a file. units: whether
    their unit rows are in memory.
    """

    gram: bool
    in_memory: bool
    units: bool

    @classmethod
    def of(cls, anchors: int, width: int, steps: int) -> Room:
        """steps: of all pursuits together. A Gram matrix costs as much as `anchors` / 2 of them."""
        units, gram = 4 * anchors * width, gram_bytes(anchors)
        worth = steps >= anchors and anchors * width >= _LARGE
        in_memory = worth and gram + units <= max_memory() - share(4) - 3 * block_bytes()
        kept = in_memory or (worth and gram <= free_scratch() // 2)
        return cls(kept, in_memory, in_memory or units <= share(2))

    def bytes(self, anchors: int, width: int) -> int:
        """How much memory that is."""
        units = 4 * anchors * width if self.units else 0
        return units + (gram_bytes(anchors) if self.in_memory else 0)

    def bases_bytes(self) -> int:
        """Of the orthonormal bases of the rows that are pursued at once."""
        return share(32) if self.gram else share(4)

    def kept(self, exact: Unit, most: int) -> Anchors:
        """The anchors with what is kept of them, for pursuits of `most` steps."""
        row = 4 * most * max(1, exact.shape[1])  # of a basis
        arrays = device().arrays
        units: Any = arrays.held(exact)
        if units is not exact:
            from clpstream.gpu import GpuArrays

            assert isinstance(arrays, GpuArrays)
            fitting = arrays.backend.free() // (4 * row)
            return Anchors(units, exact, None, min(_LARGEST_BATCH, max(1, fitting)), arrays)
        if self.units:
            units = np.empty(exact.shape, np.float32)
            for block in blocks(exact):
                units[block] = exact[block]
        gram = None
        if self.gram:
            with contextlib.suppress(OSError):  # the disk is full, say: it takes longer without
                gram = Gram(units, in_memory=self.in_memory)
        fitting = self.bases_bytes() // row
        return Anchors(units, exact, gram, min(_LARGEST_BATCH, max(1, fitting)))


def pursue(rows: Floats, own: Ids, anchors: Anchors, most: int) -> tuple[Ids, Ids]:
    """The anchors that are chosen for unit rows (n, d): ids (n, most), how many of them (n,).

    own: (n,) anchors that may not be chosen, or NO_ANCHOR. Behind the last one chosen, the ids are
    0.

    What the Gram matrix tells for certain is taken from it: most rows, in full. For what it doesn't
    tell, and where there is none, each step of a batch of rows costs a product with all anchors.
    """
    ids = np.zeros((len(rows), most), np.int64)
    counts = np.zeros(len(rows), np.int64)
    if anchors.gram is not None:
        counts = _foreseen(rows, own, anchors, anchors.gram, ids)
    unclear = np.flatnonzero(counts < most)
    for start in range(0, len(unclear), anchors.at_once):
        some = unclear[start : start + anchors.at_once]
        ids[some], counts[some] = _searched(rows[some], own[some], anchors, ids[some], counts[some])
    return ids, counts


def _foreseen(rows: Floats, own: Ids, anchors: Anchors, gram: Gram, ids: Ids) -> Ids:
    """Put the first anchors of each row into ids (n, most), as far as they are certain: (n,).

    Batch-OMP (Rubinstein, Zibulevsky & Elad 2008), with the products of all anchors and the growing
    orthonormal basis, so that a step costs one product of the basis' triangle with those.
    """
    most, count = ids.shape[1], anchors.units.shape[0]
    slices = -(-count // _SLICE)
    spans = np.empty((slices, most, _SLICE), np.float32)
    chosen = np.empty((most, rows.shape[1]), np.float32)
    step = max(1, share(8) // (4 * count))
    counts = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        products = np.zeros((len(part), slices * _SLICE), np.float32)
        for block in blocks(anchors.units):
            products[:, block] = part @ anchors.units[block].T
        for line, row in enumerate(part, start):
            if row.any():
                left = products[line - start]
                counts[line] = _foresee(
                    row, left, int(own[line]), anchors, gram, spans, chosen, ids[line]
                )
    return counts


def _foresee(
    row: Floats,
    left: Floats,
    own: int,
    anchors: Anchors,
    gram: Gram,
    spans: Floats,
    chosen: Floats,
    ids: Ids,
) -> int:
    """Of one row (d,): fill ids (most,), and tell how many of them are certain.

    left: (n,) the anchors' products with the row, changed to those with what is left of it; filled
    up with 0 to whole slices. spans: (slices, most, _SLICE), memory for the anchors' products with
    the basis. chosen: (most, d), for the chosen rows.

    The inverse triangle, and so the coefficients c and what is left, x - sum_a c_a x_a, are made of
    products in float32. The entries of the Gram matrix are rounded, but of them `left` is linear:
    it is wrong by sum_a |c_a| times that rounding at most. Anchors that are so close to the first
    that they may be the first are compared exactly.
    """
    most, count = len(ids), anchors.units.shape[0]
    inverse = np.zeros((most, most))  # of the triangle L, where L L' = the chosen rows' products
    goals, c = np.zeros(most), np.zeros(most)
    first = left.copy()
    sizes, span = np.empty_like(left), np.zeros_like(left)
    square = 1.0
    for step in range(most):
        if own >= 0:
            left[own] = 0
        np.abs(left, out=sizes)
        best = int(sizes.argmax())
        error = _RESOLUTION + (GRAM_ERROR + _RESOLUTION) * np.abs(c).sum()
        rivals = np.flatnonzero(sizes >= sizes[best] - 2 * error)
        if len(rivals) > _FEW_RIVALS or sizes[best] - 2 * error < _NOTHING:
            return step
        if len(rivals) > 1:
            rest = row - c[:step].astype(np.float32) @ chosen[:step]
            scores = np.abs(_dots(anchors.exact, rivals, rest.astype(np.float64)))
            rivals = rivals[scores >= scores.max() - _RESOLUTION * np.linalg.norm(rest)]
            best = _decided(row, ids[:step], rivals, anchors.exact)
        chosen[step] = anchors.units[best : best + 1][0]
        products = np.einsum("kd,d->k", chosen[:step], chosen[step])
        parts = inverse[:step, :step] @ products
        height = 1 - parts @ parts
        if height < _WEAK**2:
            return step
        ids[step] = best
        height = np.sqrt(height)
        inverse[step, :step] = -(parts @ inverse[:step, :step]) / height
        inverse[step, step] = 1 / height
        goals[step] = first[best]
        along = inverse[step] @ goals
        c += along * inverse[step]
        square -= along * along
        if square < _SMALL**2 or step + 1 == most:
            return step + 1
        gram.row(best, span[:count])
        if step:
            span -= np.matmul(parts.astype(np.float32), spans[:, :step]).ravel()
        span /= np.float32(height)
        spans[:, step] = span.reshape(-1, _SLICE)
        left -= np.float32(along) * span
    return 0  # of no ids


def _searched(rows: Floats, own: Ids, anchors: Anchors, ids: Ids, known: Ids) -> tuple[Ids, Ids]:
    """As `pursue`, where the first `known` (n,) of the ids (n, most) are certain already.

    What is left of a row is kept orthogonal to a growing orthonormal basis of the chosen rows (Gram
    & Schmidt).
    """
    arrays = anchors.gpu or Arrays()
    most = ids.shape[1]
    counts = known.copy()
    bases = arrays.zeros((len(rows), most, rows.shape[1]))
    left = arrays.sent(rows.copy())
    live = rows.any(axis=1)
    for step in range(most):
        norms = arrays.norms(left)
        live &= (norms > _NOTHING) | (known > step)
        here = np.flatnonzero(live & (known <= step))
        directions = arrays.taken(left, here) / arrays.sent(norms[here, None])
        if anchors.gpu is None:
            ids[here, step], cosines, rivals = _closest(directions, own[here], anchors.units)
        else:
            found = _closest_on(anchors.gpu, directions, own[here], anchors.units)
            ids[here, step], cosines, rivals = found
        for place, some in rivals.items():
            line = here[place]
            ids[line, step] = _decided(rows[line], ids[line, :step], some, anchors.exact)
        live[here] = cosines > _NOTHING
        if not live.any():
            break
        counts[live] = np.maximum(counts[live], step + 1)
        _extend(arrays, bases, step, arrays.taken(anchors.units, ids[:, step]), left, live)
    ids[np.arange(most) >= counts[:, None]] = 0
    return ids, counts


def _extend(
    arrays: Arrays, bases: Any, step: int, chosen: Any, left: Any, live: npt.NDArray[np.bool_]
) -> None:
    """Put the chosen rows into the bases of live rows, and take them out of what is left."""
    if step:
        _take_out(bases[:, :step], left)  # again: rounding brings some of them back
        _take_out(bases[:, :step], chosen)
        weak = np.flatnonzero(live & (arrays.norms(chosen) < _WEAK))
        if len(weak):
            again = arrays.taken(chosen, weak)
            _take_out(arrays.taken(bases[:, :step], weak), again)
            chosen[arrays.sent(weak)] = again
    norms = np.where(live, arrays.norms(chosen), np.float32(np.inf))
    chosen /= arrays.sent(norms[:, None])
    bases[:, step] = chosen
    _take_out(bases[:, step : step + 1], left)


def _take_out(bases: Any, rows: Any) -> None:
    """Subtract from each row (n, d) its projection on its basis (n, k, d), in place."""
    parts = bases @ rows[:, :, None]
    rows -= (parts.swapaxes(1, 2) @ bases)[:, 0]


def _closest(directions: Floats, own: Ids, units: Rows) -> tuple[Ids, Floats, dict[int, Ids]]:
    """For each direction the anchor with the largest |cosine|, and that: (n,), (n,).

    And for those directions for which float32 can't tell it, the anchors that it may be.
    """
    lines = np.arange(len(directions))
    first, second = np.full((2, len(directions)), -1, np.float32)
    ids = np.zeros(len(directions), np.int64)
    for block in _parts(units, len(directions)):
        cosines = _cosines(directions, own, units, block)
        places = cosines.argmax(axis=1)
        highest = cosines[lines, places]
        cosines[lines, places] = -1
        second = np.maximum(np.maximum(second, cosines.max(axis=1)), np.minimum(first, highest))
        better = highest > first
        ids[better] = places[better] + block.start
        first[better] = highest[better]
    unclear = np.flatnonzero((first - second < _RESOLUTION) & (first > _NOTHING))
    if not len(unclear):
        return ids, first, {}
    least = first[unclear] - _RESOLUTION
    rivals = _rivals(directions[unclear], own[unclear], units, least)
    return ids, first, dict(zip(unclear.tolist(), rivals, strict=True))


def _closest_on(
    gpu: GpuArrays, directions: Any, own: Ids, units: Any
) -> tuple[Ids, Floats, dict[int, Ids]]:
    """The same on a GPU, where directions and units are."""
    count = units.shape[0]

    def largest(directions: Any, own: Ids, k: int) -> tuple[Floats, Ids]:
        cosines, ids = gpu.largest(directions, units, min(k, count), magnitude=True)
        cosines[ids == own[:, None]] = -1
        order = np.argsort(-cosines, axis=1, kind="stable")
        return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(ids, order, axis=1)

    cosines, ids = largest(directions, own, 3)  # one may be the own one
    first = cosines[:, 0]
    second = cosines[:, 1] if count > 1 else np.full_like(first, -1)
    unclear = np.flatnonzero((first - second < _RESOLUTION) & (first > _NOTHING))
    if not len(unclear):
        return ids[:, 0], first, {}
    cosines, rivals = largest(gpu.taken(directions, unclear), own[unclear], _MOST_RIVALS)
    near = cosines >= first[unclear, None] - _RESOLUTION
    found = [np.sort(some[here]) for some, here in zip(rivals, near, strict=True)]
    return ids[:, 0], first, dict(zip(unclear.tolist(), found, strict=True))


def _parts(units: Rows, count: int) -> Iterator[slice]:
    """Blocks of anchors whose products with `count` rows take no more than a block of theirs."""
    width = units.shape[1]
    return blocks(units, block_bytes() * width // max(width, count))


def _cosines(directions: Floats, own: Ids, units: Rows, block: slice) -> Floats:
    """|cosine| with a block of anchors, (n, n_block); -1 for the own one."""
    cosines: Floats = directions @ units[block].T
    np.abs(cosines, out=cosines)
    here = np.flatnonzero((own >= block.start) & (own < block.stop))
    cosines[here, own[here] - block.start] = -1
    return cosines


def _rivals(directions: Floats, own: Ids, units: Rows, least: Floats) -> list[Ids]:
    """For each direction (n, d), the anchors whose |cosine| reaches `least` (n,)."""
    rivals: list[list[int]] = [[] for _ in directions]
    for block in _parts(units, len(directions)):
        cosines = _cosines(directions, own, units, block)
        for line, place in np.argwhere(cosines >= least[:, None]).tolist():
            rivals[line].append(block.start + place)
    return [np.array(found[:_MOST_RIVALS], np.int64) for found in rivals]


def _decided(row: Floats, ids: Ids, rivals: Ids, exact: Unit) -> int:
    """The next anchor of a row (d,) after `ids`: of some, in float64, the first of equal ones."""
    if len(rivals) == 1:
        return int(rivals[0])
    rest = row.astype(np.float64)
    if len(ids):
        chosen = exact.exact(ids)
        products = chosen @ chosen.T + JITTER * np.eye(len(ids))
        rest -= np.linalg.solve(products, chosen @ rest) @ chosen
    scores = np.abs(_dots(exact, rivals, rest))
    return int(rivals[np.argmax(scores >= scores.max() - _EQUAL * np.linalg.norm(rest))])


def _dots(exact: Unit, ids: Ids, direction: Doubles) -> Doubles:
    """Products of some anchors' float64 unit rows with a direction, in pieces of a block's size."""
    step = max(1, block_bytes() // (8 * exact.shape[1]))
    parts = [
        np.einsum("nd,d->n", exact.exact(ids[start : start + step]), direction)
        for start in range(0, len(ids), step)
    ]
    return np.concatenate(parts)
