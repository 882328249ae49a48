"""Helper rows that look as if nothing had been learned about their tokens."""

from __future__ import annotations

import numpy as np

from clpstream.memory import block_bytes
from clpstream.transfer.rows import Ids, Rows, blocks, mean

_SHORT = 0.1
"""Of the median length: rows shorter than this say next to nothing."""
_ALIKE = 0.9999
"""Cosine from which two rows are the same."""


def untrained(rows: Rows) -> dict[str, Ids]:
    """Places (of n rows) by what is suspicious: "near zero", "near identical".

    Tokens that never came up in training keep rows that are short, by themselves or less the mean
    of all, or equal (Land & Bartolo 2024, arXiv 2405.05417); equal ones have equal lengths, so only
    neighbours in length are compared. Reads all rows three times.
    """
    center = mean(rows)
    lengths, whole = np.empty(rows.shape[0]), np.empty(rows.shape[0])
    for block in blocks(rows):
        whole[block] = np.linalg.norm(rows[block], axis=1)
        lengths[block] = np.linalg.norm(rows[block] - center, axis=1)
    short = np.zeros(len(lengths), bool)
    if len(lengths):
        short = lengths < _SHORT * np.median(lengths)
        short |= whole < _SHORT * np.median(whole)
    order = np.argsort(lengths, kind="stable")
    alike = np.zeros(len(order), bool)
    step = max(2, block_bytes() // (8 * max(1, rows.shape[1])))
    for start in range(0, len(order) - 1, step):
        places = order[start : start + step + 1]
        found = rows[places] - center
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(float).tiny)
        same = np.einsum("ij,ij->i", found[:-1], found[1:]) > _ALIKE
        alike[places[:-1][same]] = alike[places[1:][same]] = True
    return {
        "near zero": np.flatnonzero(short),
        "near identical": np.flatnonzero(alike & ~short),
    }
