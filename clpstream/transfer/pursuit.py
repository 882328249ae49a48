"""Which anchors orthogonal matching pursuit chooses, for many rows at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clpstream.memory import block_bytes, share
from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, Unit, blocks

_LARGEST_BATCH = 1024

_NOTHING = 1e-5
"""What is left of a unit row, or its cosine with an anchor, that may be float32's rounding."""
_WEAK = 0.3
"""Norm of what a basis leaves of a unit row, below which it is made orthogonal a second time."""
_RESOLUTION = 2e-6
"""Cosines of unit rows that are closer than this may come out of float32 in either order."""
_MOST_RIVALS = 1024
"""How many anchors are compared in float64 where float32 can't tell which is first."""


def batch_bytes() -> int:
    """Of the orthonormal bases of the rows that are pursued at once."""
    return share(4)


def kept_bytes() -> int:
    """Unit rows of anchors that take no more are kept; others are read again in each step."""
    return share(2)


def kept(units: Unit) -> Rows:
    """The rows in memory, if they fit into `kept_bytes`."""
    if 4 * units.shape[0] * units.shape[1] > kept_bytes():
        return units
    rows = np.empty(units.shape, np.float32)
    for block in blocks(units):
        rows[block] = units[block]
    return rows


def batch_size(most: int, width: int) -> int:
    """How many rows `width` wide to pursue at once, with `most` atoms each."""
    return min(_LARGEST_BATCH, max(1, batch_bytes() // (4 * most * max(1, width))))


def pursue(rows: Floats, own: Ids, units: Rows, exact: Unit, most: int) -> tuple[Ids, Ids]:
    """The anchors that are chosen for unit rows (n, d): ids (n, most), how many of them (n,).

    own: (n,) anchors that may not be chosen, or NO_ANCHOR. units: the anchors' unit rows, exact:
    the same in float64 on demand. Behind the last one chosen, the ids are 0.

    What is left of a row is kept orthogonal to a growing orthonormal basis of the chosen rows
    (Gram & Schmidt), so that a step costs one product with all anchors for the whole batch. A Gram
    matrix (Batch-OMP, Rubinstein, Zibulevsky & Elad 2008) would save most of that, but grows with
    the square of the vocabulary.
    """
    ids = np.zeros((len(rows), most), np.int64)
    counts = np.zeros(len(rows), np.int64)
    bases = np.zeros((len(rows), most, rows.shape[1]), np.float32)
    left = rows.copy()
    live = rows.any(axis=1)
    for step in range(most):
        norms = np.linalg.norm(left, axis=1)
        live &= norms > _NOTHING
        lengths = np.where(live, norms, np.inf).astype(np.float32)
        best, cosines = _closest(left / lengths[:, None], own, units, exact)
        live &= cosines > _NOTHING
        if not live.any():
            break
        ids[live, step] = best[live]
        counts[live] += 1
        _extend(bases, step, units[best], left, live)
    return ids, counts


def _extend(
    bases: Floats, step: int, chosen: Floats, left: Floats, live: npt.NDArray[np.bool_]
) -> None:
    """Put the chosen rows into the bases of live rows, and take them out of what is left."""
    if step:
        _take_out(bases[:, :step], left)  # again: rounding brings some of them back
        _take_out(bases[:, :step], chosen)
        weak = np.flatnonzero(live & (np.linalg.norm(chosen, axis=1) < _WEAK))
        if len(weak):
            again = chosen[weak]
            _take_out(bases[weak, :step], again)
            chosen[weak] = again
    norms = np.linalg.norm(chosen, axis=1)
    chosen[~live] = 0
    chosen /= np.where(live, norms, 1)[:, None]
    bases[:, step] = chosen
    left -= np.einsum("nd,nd->n", chosen, left)[:, None] * chosen


def _take_out(bases: Floats, rows: Floats) -> None:
    """Subtract from each row (n, d) its projection on its basis (n, k, d), in place."""
    parts = np.matmul(bases, rows[:, :, None])
    rows -= np.matmul(parts.swapaxes(1, 2), bases)[:, 0]


def _closest(directions: Floats, own: Ids, units: Rows, exact: Unit) -> tuple[Ids, Floats]:
    """For each direction the anchor with the largest |cosine|, and that: (n,), (n,)."""
    lines = np.arange(len(directions))
    first, second = np.full((2, len(directions)), -1, np.float32)
    ids = np.zeros(len(directions), np.int64)
    for block in blocks(units):
        cosines = _cosines(directions, own, units, block)
        places = cosines.argmax(axis=1)
        highest = cosines[lines, places]
        cosines[lines, places] = -1
        second = np.maximum(np.maximum(second, cosines.max(axis=1)), np.minimum(first, highest))
        better = highest > first
        ids[better] = places[better] + block.start
        first[better] = highest[better]
    unclear = np.flatnonzero((first - second < _RESOLUTION) & (first > _NOTHING))
    if len(unclear):
        least = first[unclear] - _RESOLUTION
        ids[unclear] = _decided(directions[unclear], own[unclear], units, exact, least)
    return ids, first


def _cosines(directions: Floats, own: Ids, units: Rows, block: slice) -> Floats:
    """|cosine| with a block of anchors, (n, n_block); -1 for the own one."""
    cosines: Floats = directions @ units[block].T
    np.abs(cosines, out=cosines)
    here = np.flatnonzero((own >= block.start) & (own < block.stop))
    cosines[here, own[here] - block.start] = -1
    return cosines


def _decided(directions: Floats, own: Ids, units: Rows, exact: Unit, least: Floats) -> Ids:
    """Of the anchors that reach `least`, the first by float64, and of equal ones the lowest id."""
    rivals: list[list[int]] = [[] for _ in directions]
    for block in blocks(units):
        cosines = _cosines(directions, own, units, block)
        for line, place in np.argwhere(cosines >= least[:, None]).tolist():
            rivals[line].append(block.start + place)
    ids = np.zeros(len(directions), np.int64)
    for line, found in enumerate(rivals):
        some = np.array(found[:_MOST_RIVALS], np.int64)
        scores: Doubles = np.abs(_dots(exact, some, directions[line]))
        ids[line] = some[scores.argmax()]
    return ids


def _dots(exact: Unit, ids: Ids, direction: Floats) -> Doubles:
    """Products of some anchors' float64 unit rows with a direction, in pieces of a block's size."""
    step = max(1, block_bytes() // (8 * exact.shape[1]))
    wide = direction.astype(np.float64)
    parts = [
        np.einsum("nd,d->n", exact.exact(ids[start : start + step]), wide)
        for start in range(0, len(ids), step)
    ]
    return np.concatenate(parts)
