"""Singular vectors in little memory: a fourth of what those of LAPACK take, in thrice the time."""

from __future__ import annotations

import itertools

import numpy as np

from clpstream.transfer.rows import Doubles, Floats, Ids

_TOGETHER = 128
"""Rows that are turned with as many others at once: most of the work is in products of matrices."""
_ORTHOGONAL = 1e-5
"""A cosine that is small enough: with the next sweep it would be its square."""
_SETTLED = 1e-6
"""A cosine that is left as it is: it is rounding."""
_MOST_SWEEPS = 30
"""Half a dozen is what it takes."""


def orthogonal(rows: Floats, resolution: float) -> tuple[Floats, Floats, Doubles]:
    """Turn rows (n, m) among themselves until they are orthogonal: the turn Uᵀ (n, n), the turned
    rows UᵀP = diag(lengths) Vᵀ (n, m), and their lengths (n,) in falling order.

    One-sided Jacobi (Hestenes 1958) by blocks of rows: the eigenvectors of two blocks' products
    turn both, pair of blocks after pair, until no two rows are less than orthogonal. Rows stay
    float32: beside the matrix itself there is a copy of it, and U. Rows shorter than `resolution`
    of the longest may lie in any direction.
    """
    turn = np.eye(len(rows), dtype=np.float32)
    rows = rows.astype(np.float32, order="C")  # a copy
    for _ in range(_MOST_SWEEPS):
        # long rows first, so that they come to stand together, and converge sooner
        order, lengths = _falling(rows)
        worst = max(_turn(rows, turn, ids, resolution * lengths[0]) for ids in _pairs(order))
        if worst < _ORTHOGONAL:
            break
    order, lengths = _falling(rows)
    return turn[order], rows[order], lengths


def bytes_needed(rows: int, columns: int) -> int:
    """About how much memory `orthogonal` takes, beside its argument."""
    return 4 * rows * (2 * rows + columns) + 2 * _TOGETHER * 16 * columns


def _pairs(order: Ids) -> list[Ids]:
    """Places of two blocks of rows, for all pairs of blocks; of all rows, if they are one block."""
    blocks = np.split(order, range(_TOGETHER, len(order), _TOGETHER))
    return [np.concatenate(two) for two in itertools.combinations(blocks, 2)] or blocks


def _turn(rows: Floats, turn: Floats, ids: Ids, least: float) -> float:
    """Make some of the rows orthogonal, in place: by what cosine they were not, at most."""
    some = rows[ids]
    wide = some.astype(np.float64)
    products = wide @ wide.T
    del wide
    lengths = np.sqrt(np.diag(products))
    inverse = np.divide(1, lengths, out=np.zeros(len(ids)), where=lengths > least)
    cosines = np.abs(products * inverse * inverse[:, None])
    np.fill_diagonal(cosines, 0)
    worst = float(cosines.max(initial=0))
    if worst > _SETTLED:
        vectors = np.linalg.eigh(products)[1][:, ::-1].T.astype(np.float32)
        rows[ids] = vectors @ some
        turn[ids] = vectors @ turn[ids]
    return worst


def _falling(rows: Floats) -> tuple[Ids, Doubles]:
    """The order of the rows by their lengths, the longest first, and these lengths in it: (n,)."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    order = np.argsort(-lengths, kind="stable")
    return order, lengths[order]
