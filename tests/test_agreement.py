"""Whether shared tokens mean the same: against refits without each of them, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from test_maps import two_spaces

from clpstream import TransferError
from clpstream.transfer import Agreement, agreement_of
from clpstream.transfer.linear import cosines, pairs_of, rotation

pytestmark = pytest.mark.usefixtures("roomy_or_lean")


def left_out_one_by_one(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    found = []
    for place in range(len(x)):
        x_others, y_others = np.delete(x, place, axis=0), np.delete(y, place, axis=0)
        x_mean, y_mean = x_others.mean(axis=0), y_others.mean(axis=0)
        products = (x_others - x_mean).T @ (y_others - y_mean)
        left, _, right = np.linalg.svd(products, full_matrices=False)
        made, row = (x[place] - x_mean) @ left @ right, y[place] - y_mean
        found.append(made @ row / np.linalg.norm(made) / np.linalg.norm(row))
    return np.array(found)


def both_noisy(count, d_helper, d_source, noise):
    """Neither space lies in the other."""
    x, y = two_spaces(count, d_helper, d_source, noise=noise)
    more = np.random.default_rng(6).standard_normal(y.shape).astype(np.float32)
    return x, y + np.float32(noise * 1.5) * more


@pytest.mark.parametrize("sizes", [(8, 24), (24, 8), (16, 16), (24, 20)])
@pytest.mark.parametrize("noise", [0.5, 2])
def test_each_pair_is_judged_by_the_others(sizes, noise):
    x, y = both_noisy(200, *sizes, noise)
    expected = left_out_one_by_one(x, y)
    found = agreement_of(x, y).of_pairs
    assert np.corrcoef(expected, found)[0, 1] > 0.99
    with_own = cosines(rotation(pairs_of(x, y)), x, y)
    assert np.abs(expected - found).mean() < 0.1 * np.abs(expected - with_own).mean()


def test_other_pairs_agree_by_chance_only():
    x, y = two_spaces(1000, 16, 16, noise=0.5)
    found = agreement_of(x, y)
    assert abs(found.of_others.mean()) < 0.05
    assert found.of_pairs.mean() > 0.6


def spaces_with_right_ones(right):
    x, y = two_spaces(2000, 16, 16, noise=0.3)
    y[right:] = y[right + np.random.default_rng(3).permutation(2000 - right)]
    return x, y


def copied(x, y):
    found = agreement_of(x, y)
    return np.flatnonzero(found.of_pairs >= found.threshold(np.ones(len(x), bool)))


def test_of_one_language_nearly_all_are_copied():
    assert len(copied(*spaces_with_right_ones(2000))) > 1900


@pytest.mark.parametrize("right", [300, 600])
def test_of_two_languages_few_are_copied_and_those_are_right(right):
    found = copied(*spaces_with_right_ones(right))
    assert 0.5 * right < len(found) < 1.2 * right
    assert (found < right).mean() > 0.9


def test_the_threshold_moves_with_what_chance_explains():
    others = np.linspace(-0.5, 0.5, 100)
    least, best = np.quantile(others, 0.9), 0.99
    everyone = np.ones(100, bool)
    for chance, share in ((15, 0.3), (25, 0.5), (50, 1), (80, 1)):
        ours = np.concatenate([np.full(chance, -0.4), np.full(100 - chance, best)])
        wanted = least + share * (0.9 * best - least)
        assert Agreement(ours, others).threshold(everyone) == pytest.approx(wanted)


@pytest.mark.parametrize("better", [0.5, 0.92])
def test_words_of_a_versed_source_are_copied(better):
    """Unless they agree worse than chance."""
    others = np.linspace(-0.5, 0.5, 101)
    words = np.repeat([0.6, -0.6], [round(100 * better), 100 - round(100 * better)])
    unsure = np.arange(101) < 100
    found = Agreement(np.append(words, 0.9), others)
    assert found.threshold(unsure, versed=True) == pytest.approx(-0.4, abs=0.01)
    assert found.threshold(unsure) > 0.4


def test_only_unsure_anchors_set_the_threshold():
    ours, others = np.full(10, 0.9), np.zeros(10)
    unsure = np.arange(10) < 5
    ours[5:], others[5:] = -1, 1
    assert Agreement(ours, others).threshold(unsure) == 0
    assert Agreement(ours, others).threshold(np.zeros(10, bool)) == -1


def test_blocks_change_no_pair(monkeypatch):
    x, y = two_spaces(200, 16, 24, noise=0.5)
    whole = agreement_of(x, y)
    monkeypatch.setattr("clpstream.transfer.rows.blocks.__defaults__", (4 * 24 * 30,))
    parts = agreement_of(x, y)
    assert np.allclose(parts.of_pairs, whole.of_pairs, atol=1e-5)
    assert abs(parts.of_others.mean()) < 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale_and_mean_do_not_matter(scale):
    x, y = two_spaces(200, 16, 24, noise=0.5)
    expected = agreement_of(x, y).of_pairs
    with np.errstate(all="raise"):
        scaled = agreement_of(x * np.float32(scale), y * np.float32(scale)).of_pairs
        far = 50 * x + np.float32(1e4), y + np.float32(1e4)
        moved = agreement_of(*far).of_pairs
        back = agreement_of(far[0] - np.float32(1e4), far[1] - np.float32(1e4)).of_pairs
    assert np.allclose(scaled, expected, atol=1e-4)
    assert np.allclose(moved, back, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_little_to_learn_from_gives_cosines_all_the_same():
    x, y = two_spaces(200, 16, 24, noise=0.5)
    with np.errstate(all="raise"):
        for rows in ((x[:1], y[:1]), (x[[0] * 9], y[:9]), (x[:9], y[[0] * 9])):
            found = agreement_of(*rows)
            assert not found.of_pairs.any() and not found.of_others.any()
            assert found.threshold(np.ones(len(rows[0]), bool)) == 0
        x[:5], y[3:8] = 0, 0
        for rows in ((x[:10], y[:10]), (x, y), (y, x)):
            found = agreement_of(*rows)
            cosines = np.concatenate([found.of_pairs, found.of_others])
            assert np.abs(cosines).max() <= 1 + 1e-5


@pytest.mark.parametrize("place", [0, 1])
def test_nan_is_refused(place):
    rows = two_spaces(50, 16, 24)
    rows[place][3, 2] = np.nan
    with pytest.raises(TransferError, match="NaN"):
        agreement_of(*rows)
