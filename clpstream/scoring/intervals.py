"""How sure a number of bits per byte is, by the bootstrap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FEW_BLOCKS = 20
"""With fewer, an interval is rough, and mostly too narrow."""

_RESAMPLES = 10_000
_AT_ONCE = 1 << 22
_SEED = 0


class Interval(NamedTuple):
    """A 95 % confidence interval, in bits per byte."""

    low: float
    high: float


def interval(bits: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]) -> Interval | None:
    """The interval of sum(bits) / sum(sizes), from the bits and bytes of blocks: both [blocks].

    The percentile bootstrap (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter
    13) over blocks, with a fixed seed. Of two models, `bits` are the differences: that pairs them
    (Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation). What varies is
    the text; neighbouring blocks are taken to be independent. None for a single block, which tells
    nothing.
    """
    blocks = len(bits)
    if blocks < 2:
        return None
    random = np.random.default_rng(_SEED)
    rates = np.empty(_RESAMPLES)
    step = max(1, _AT_ONCE // blocks)
    for begin in range(0, _RESAMPLES, step):
        some = rates[begin : begin + step]
        drawn = random.integers(blocks, size=(len(some), blocks))
        some[:] = bits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(rates, (2.5, 97.5))
    return Interval(float(low), float(high))
