"""How much a helper has learned: `learned` against noise, and against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
from truths import unit

from clpstream.transfer.learned import learned


def noise(count, width, seed=1):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def meanings(count, width, part, seed=1):
    """Each token is like one other, but for a part."""
    rows = noise(count, width, seed)
    rows[1::2] = rows[::2] + part * rows[1::2]
    return rows


def by_formula(rows):
    rows = rows.astype(np.float64)

    def nearest(rows):
        white = (rows - rows.mean(axis=0)) @ np.linalg.cholesky(np.linalg.inv(np.cov(rows.T)))
        cosines = unit(white) @ unit(white).T
        return np.quantile([np.delete(line, i).max() for i, line in enumerate(cosines)], 0.75)

    return nearest(rows) / nearest(noise(*rows.shape, seed=7).astype(np.float64)) - 1


@pytest.mark.parametrize("part", [0.1, 0.5, 1])
def test_it_is_how_much_nearer_than_noise_rows_are_to_each_other(part):
    rows = meanings(800, 40, part)
    expected = by_formula(rows)
    assert expected > 0.2
    assert learned(rows) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("width", [24, 40, 300])
def test_noise_has_learned_nothing(width):
    assert abs(learned(noise(2000, width))) < 0.03


def test_noise_in_a_few_loud_directions_is_noise():
    """What minutes of training do: few directions grow, and the others stay as they were drawn."""
    loud = np.where(np.arange(60) < 5, 50, 1).astype(np.float32)
    assert abs(learned(noise(2000, 60) * loud)) < 0.03


def test_how_rows_are_turned_stretched_and_moved_does_not_matter():
    rows = meanings(800, 40, 0.3)
    matrix = np.random.default_rng(3).standard_normal((40, 40))
    moved = (rows @ matrix + 5).astype(np.float32)
    assert learned(moved) == pytest.approx(learned(rows), abs=1e-3)


def test_wide_rows_are_judged_by_some_directions():
    assert learned(meanings(2000, 1000, 0.3)) > 1


def test_rows_may_lie_in_two_tables():
    rows = meanings(800, 40, 0.3)
    assert learned(rows[:301], rows[301:]) == pytest.approx(learned(rows), abs=1e-4)


@pytest.mark.parametrize("count, width", [(0, 40), (1, 40), (499, 40), (2000, 23)])
def test_where_there_is_no_telling_it_says_nothing(count, width):
    assert learned(noise(count, width)) is None


def test_equal_rows_of_a_few_tokens_do_not_count():
    rows = noise(2000, 40)
    rows[::20] = rows[0]
    assert abs(learned(rows)) < 0.03
