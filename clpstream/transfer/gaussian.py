"""`random`: rows drawn from a normal distribution around the anchors' mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.errors import TransferError
from clpstream.memory import block_bytes
from clpstream.transfer.method import NO_ANCHOR, own_anchors
from clpstream.transfer.rows import (
    Doubles,
    Floats,
    Ids,
    Rows,
    blocks,
    bounds,
    check_count,
    check_shapes,
    mean,
)

_PER_STEP = 4
"""Numbers of 64 bits that Philox gives for each step of its counter."""


@dataclass(frozen=True)
class Random:
    """Each column drawn from N(mean, std) of the anchors' rows in that column. No helper is read.

    The random start that methods are compared with, as in WECHSEL (Minixhofer et al. 2022, arXiv
    2112.06598) and in the code of CLP-Transfer (Ostendorff & Rehm 2023, arXiv 2301.09626); Hewitt
    2021 ("Initializing new word embeddings for pretrained language models") draws from the whole
    covariance, of which this is the diagonal. The std is that of the anchors themselves (ddof 0).

    seed: from 0 to 2**64 - 1. The draw behind a row follows from the seed, its place among the
    wanted rows and the width alone: blocks don't change it, and tensors of a width share it.
    Raises TransferError for another seed.
    """

    seed: int = 0
    name: ClassVar[str] = "random"
    reads_helper: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise TransferError(f"seed is {self.seed!r}; it must be a number from 0 to 2**64 - 1")

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> PreparedRandom:
        """See `Method.prepare`. The rows may have no columns."""
        check_shapes(anchors, wanted)
        own = own_anchors(own, wanted.shape[0], anchors.shape[0])
        return PreparedRandom(own, anchors.shape[0], self.seed)

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. One anchor has no spread."""
        return 2

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        return 8 * block_bytes() + 8 * missing


class PreparedRandom:
    """See `Prepared`."""

    def __init__(self, own: Ids, anchors: int, seed: int) -> None:
        self._own = own
        self._anchors = anchors
        self._seed = seed
        self.guarded: dict[str, Ids] = {}

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """See `Prepared.rows`."""
        check_count(anchors, self._anchors)
        return _Drawn(anchors, self._own, self._seed)

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`. No anchor weighs more than another in a draw: none is told."""
        return [(np.empty(0, np.int64), np.empty(0))] * len(rows)


class _Drawn:
    def __init__(self, anchors: Rows, own: Ids, seed: int) -> None:
        self._anchors = anchors
        self._own = own
        self._seed = seed
        self._mean = mean(anchors)
        self._squares = np.zeros(anchors.shape[1])
        for block in blocks(anchors, block_bytes() // 4):
            self._squares += np.square(anchors[block] - self._mean).sum(axis=0)
        self.shape = (len(own), anchors.shape[1])

    def __getitem__(self, index: slice) -> Floats:
        start, stop = bounds(index, self.shape[0])
        out = np.empty((stop - start, self.shape[1]), np.float32)
        # since a draw takes several float64 of its size
        for part in blocks(out, block_bytes() // 4):
            rows = slice(start + part.start, start + part.stop)
            means, deviations = self._distribution(self._own[rows])
            out[part] = means + deviations * normal(self._seed, rows.start, rows.stop, out.shape[1])
        return out

    def _distribution(self, own: Ids) -> tuple[Doubles, Doubles]:
        """Mean and standard deviation for each row, own left out: (n, width)."""
        count = self._anchors.shape[0]
        means = np.repeat(self._mean[None], len(own), axis=0)
        deviations = np.repeat(np.sqrt(self._squares / count)[None], len(own), axis=0)
        shared = np.flatnonzero(own != NO_ANCHOR)
        if len(shared):
            rows = self._anchors[own[shared]].astype(np.float64)
            means[shared] -= (rows - self._mean) / (count - 1)
            squares = self._squares - (rows - self._mean) * (rows - means[shared])
            deviations[shared] = np.sqrt(np.maximum(squares, 0) / (count - 1))
        return means, deviations


def normal(seed: int, start: int, stop: int, width: int) -> Doubles:
    """Rows `start` to `stop` of an endless matrix of standard normal numbers, `width` wide.

    Philox is a function of key and counter, so that each row has its own range of the counter. The
    numbers are made by Box & Muller's formula (1958), since numpy's own way takes a varying count
    of random bits for each, and may change with its version.
    """
    steps = -(-width // _PER_STEP)
    bits = np.random.Philox(key=seed, counter=start * steps)
    raw = bits.random_raw((stop - start) * steps * _PER_STEP).reshape(stop - start, 2, -1)
    uniform = (raw >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.hstack([radius * np.cos(angle), radius * np.sin(angle)])[:, :width]
