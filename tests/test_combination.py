"""Sparse sums of rows against the formula in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clpstream.memory import limited_to
from clpstream.transfer.combination import Combined, SparseWeights, compact

WIDTH = 24


@pytest.fixture
def anchors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((300, WIDTH)).astype(np.float32)


@pytest.fixture
def parts() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of no, a few and all weights, whose anchors come in any order, some of them twice."""
    rng = np.random.default_rng(2)
    found = []
    for size in (0, 40, 1, 90):
        counts = rng.choice([0, 1, 3, 10, 300], size=size, p=[0.1, 0.2, 0.3, 0.3, 0.1])
        indices = rng.integers(0, 300, counts.sum())
        found.append(compact(counts, indices, rng.standard_normal(len(indices))))
    return found


def sums(parts: list[Any], anchors: np.ndarray) -> np.ndarray:
    dense = np.zeros((sum(len(part[0]) for part in parts), len(anchors)))
    counts, indices, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    np.add.at(dense, (np.repeat(np.arange(len(counts)), counts), indices), values)
    return dense @ anchors


def slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, count, step))


def test_sums_are_the_formula(parts, anchors):
    made = Combined(SparseWeights(parts), anchors)[:]
    assert made.dtype == np.float32
    assert np.allclose(made, sums(parts, anchors), atol=1e-4)


@pytest.mark.parametrize("limit", [1, 32 * 4 * WIDTH, 8 * 4 * WIDTH * 7, 8 * 4 * WIDTH * 100])
@pytest.mark.parametrize("step", [1, 13, 1000])
def test_neither_the_limit_nor_the_slices_change_a_bit(parts, anchors, limit, step):
    expected = Combined(SparseWeights(parts), anchors)[:]
    with limited_to(limit):
        rows = Combined(SparseWeights(parts), anchors)
        made = np.vstack([rows[part] for part in slices(len(expected), step)])
        assert (rows[50:60] == expected[50:60]).all()  # and not in their order either
    assert made.tobytes() == expected.tobytes()


def test_a_slice_is_the_callers_own(parts, anchors):
    rows = Combined(SparseWeights(parts), anchors)
    expected = rows[:20].copy()
    rows[:20][:] = 7
    assert (rows[:20] == expected).all()


def test_an_anchor_is_read_once_for_all_rows_that_fit(parts, anchors):
    class Watched:
        shape = anchors.shape
        read = 0

        def __getitem__(self, index: Any) -> np.ndarray:
            self.read += len(anchors[index])
            return anchors[index]

    watched = Watched()
    rows = Combined(SparseWeights(parts), watched)
    for part in slices(rows.shape[0], 7):
        rows[part]
    assert watched.read == len(anchors)
