"""Helper rows that look as if nothing had been learned about their tokens."""

from __future__ import annotations

import numpy as np

from clpstream.memory import block_bytes
from clpstream.transfer.rows import Ids, Rows, blocks, lengths, less

_SHORT = 0.1
"""Of the median length: rows shorter than this say next to nothing."""
_ALIKE = 0.9999
"""Cosine from which two rows are the same."""


def untrained(rows: Rows) -> dict[str, Ids]:
    """Places (of n rows) by what is suspicious: "near zero", "near identical".

    Tokens that never came up in training keep rows that are short, by themselves or less the mean
    of all, or equal (Land & Bartolo 2024, arXiv 2405.05417); equal ones have equal lengths, so only
    neighbours in length are compared. Reads all rows twice.
    """
    count = rows.shape[0]
    center, whole, apart = np.zeros(rows.shape[1]), np.empty(count), np.empty(count)
    for block in blocks(rows):
        found = rows[block]
        center += found.sum(axis=0, dtype=np.float64) / count
        whole[block] = lengths(found)
    order = np.argsort(whole, kind="stable")
    alike = np.zeros(count, bool)
    step = max(1, block_bytes() // (4 * max(1, rows.shape[1])) - 1)
    for start in range(0, count, step):
        places = order[start : start + step + 1]
        found = less(rows[places], center)
        apart[places] = lengths(found)
        found /= np.maximum(apart[places, None], np.finfo(np.float32).tiny).astype(np.float32)
        same = np.einsum("ij,ij->i", found[:-1], found[1:]) > _ALIKE
        alike[places[:-1][same]] = alike[places[1:][same]] = True
    short = np.zeros(count, bool)
    if count:
        short = (apart < _SHORT * np.median(apart)) | (whole < _SHORT * np.median(whole))
    return {
        "near zero": np.flatnonzero(short),
        "near identical": np.flatnonzero(alike & ~short),
    }
