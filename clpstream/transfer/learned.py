"""How much there is in a helper's rows beside the random numbers that training began with."""

from __future__ import annotations

from functools import cache

import numpy as np

from clpstream.transfer.linear import Frame, Framed
from clpstream.transfer.rows import Doubles, Rows, Selected, Unit, blocks
from clpstream.transfer.search import Queries, nearest

LITTLE = 0.23
"""Of `learned`, below which some of the rows' length is noise."""
_FIRST, _FEWEST = 2000, 500
"""Rows that are looked at: those of the most frequent tokens, which are trained best. Among fewer
than 500, the nearest are too far to tell."""
_WIDEST, _NARROWEST = 256, 24
"""Directions that are looked at: of wider rows random ones, in which all others have a part. In
fewer than 24, rows of noise are near each other too."""
_PER_DIRECTION = 5
"""Rows at least: of fewer, the covariance says little."""
_QUANTILE = 0.75
_SEED = 0


def learned(*tables: Rows) -> float | None:
    """By what part rows (n, d) are nearer to their nearest other row than rows of noise are.

    A model's rows are random numbers at first. A few minutes of training move them in a few
    directions, and leave noise in the others: with all directions made equal (rows are whitened),
    they stand as far from each other as those of a normal distribution, and this is about 0. Tokens
    that a model has learned have others beside them that are used alike: it is 0.3 to 0.4 in models
    that were trained for an hour on a CPU, and 1 or more in large ones. The cosines that are
    compared are upper quartiles: a few tokens that are odd, or equal, don't count.

    tables: rows (n_i, d), of which the first 2,000 in all are looked at. None where there is no
    telling: for fewer than 500, and where d is less than 24.
    """
    some = _first(tables)
    count, wide = sum(rows.shape[0] for rows in some), tables[0].shape[1]
    if count < _FEWEST or wide < _NARROWEST:
        return None
    width = min(wide, _WIDEST, count // _PER_DIRECTION)
    turn = _noise(wide, width)
    projected = [rows[block] @ turn for rows in some for block in blocks(rows)]
    return _upper(np.concatenate(projected)) / _upper_of_noise(count, width) - 1


def _first(tables: tuple[Rows, ...]) -> list[Rows]:
    """The first rows of all tables, in one frame."""
    some: list[Rows] = []
    left = _FIRST
    for rows in tables:
        count = min(left, rows.shape[0])
        if count:
            some.append(Selected(rows, np.arange(count)))
        left -= count
    return [Framed(rows, Frame.of(some[0])) for rows in some]


def _noise(count: int, width: int) -> Doubles:
    return np.random.default_rng(_SEED).standard_normal((count, width))


@cache
def _upper_of_noise(count: int, width: int) -> float:
    return _upper(_noise(count, width))


def _upper(rows: Doubles) -> float:
    """The upper quartile of the cosines of rows (n, d) with their nearest others."""
    return float(np.quantile(_nearest(rows), _QUANTILE))


def _nearest(rows: Doubles) -> Doubles:
    """The cosine (n,) of each row (n, d) with its nearest other one, when they are whitened."""
    rows = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    known = values > 1e-12 * values[-1]
    vectors[:, known] /= np.sqrt(values[known])
    vectors[:, ~known] = 0
    white = Unit((rows @ vectors).astype(np.float32), None)
    every = np.arange(len(rows))
    return nearest(Queries(white, every, every), white, 1)[0][:, 0]
