"""Embedding tables for workloads: structured as trained ones are, made block by block.

A token stands for a concept, a number. A concept has a few latent coordinates: those of its cluster
plus its own, of which the first vary most. A table turns them into its own space by a random
rotation, and adds noise and a mean row. Two tables that hold the same concept so have rows that are
related as those of two models are, and methods have something to find.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

CLUSTERS = 1000
LATENTS = 192
NOISE, MEAN = 1.2, 0.7  # lengths, where that of a concept is about 1
DEVIATION = 0.02  # of a table's values, about
_BLOCK_BYTES = 16 << 20

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def table_blocks(concepts: Ids, width: int, latents: int, seed: int) -> Iterator[Floats]:
    """The rows (n, width) of a table with these concepts, block after block.

    latents: how many coordinates a concept has, at most `width`; the same in related tables.
    """
    generator = np.random.default_rng(seed)
    turn = np.linalg.qr(generator.standard_normal((width, latents)))[0].T.astype(np.float32)
    mean = generator.standard_normal(width, np.float32) * np.float32(MEAN / np.sqrt(width))
    step = max(1, _BLOCK_BYTES // (4 * max(width, 4 * latents)))
    for start in range(0, len(concepts), step):
        rows = _coordinates(concepts[start : start + step], latents) @ turn
        rows += generator.standard_normal(rows.shape, np.float32) * np.float32(
            NOISE / np.sqrt(width)
        )
        rows += mean
        rows *= np.float32(DEVIATION * np.sqrt(width))
        yield rows


def table(concepts: Ids, width: int, latents: int, seed: int) -> Floats:
    """The same rows in memory, (n, width)."""
    return np.concatenate(list(table_blocks(concepts, width, latents, seed)))


def _coordinates(concepts: Ids, latents: int) -> Floats:
    """Of each concept, (n, latents); any may be asked for in any order."""
    clusters = (_scattered(concepts.astype(np.uint64)) % np.uint64(CLUSTERS)).astype(np.int64)
    spectrum = (1 + np.arange(latents, dtype=np.float32)) ** -0.5
    spectrum /= np.sqrt(2) * np.linalg.norm(spectrum)
    return (_normals(concepts, latents) + _normals(-1 - clusters, latents)) * spectrum


def _normals(numbers: Ids, columns: int) -> Floats:
    """Values (n, columns) that are nearly normal, and a function of number and column."""
    keys = numbers.astype(np.uint64)[:, None] * np.uint64(1 << 20)
    bits = _scattered(keys + np.arange(columns, dtype=np.uint64))
    sums = bits.view(np.uint16).reshape(*bits.shape, 4).sum(axis=-1, dtype=np.float32)
    return (sums - np.float32(2 * 65535)) * np.float32(np.sqrt(3) / 65536)


def _scattered(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64: 64 bits that look random, for each key."""
    bits = keys + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
