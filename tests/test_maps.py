"""`procrustes` and `align` against their formulas, written out in float64 numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from test_ridge import reference as ridge_reference
from truths import helper_and_source, relative_error, unit

from clpstream import TransferError
from clpstream.memory import limited_to
from clpstream.transfer import NO_ANCHOR, Align, Procrustes, Table, linear
from clpstream.transfer.align import mutual, similarities
from clpstream.transfer.linear import Scaled, factors, pairs_of, polar, rotation, rough_polar

pytestmark = pytest.mark.usefixtures("roomy_or_lean")

MAPS = [Procrustes(), Align()]


def turn(generator, size):
    """A random rotation (size, size)."""
    return np.linalg.qr(generator.standard_normal((size, size)))[0]


def two_spaces(count, d_helper, d_source, noise=0.0, seed=0, alike=False):
    """Rows in both models: what the narrower space holds is the same, but for turn and scale.

    alike: as in a model that has learned, each token has another one that is used like it.
    """
    generator = np.random.default_rng(seed)
    least = min(d_helper, d_source)
    meaning = generator.standard_normal((count, least))
    if alike:
        meaning[1::2] = meaning[:-1:2] + 0.1 * meaning[1::2]
    meaning *= np.linspace(2, 0.5, least)
    rows = []
    for size, scale, part in ((d_helper, 0.02, noise), (d_source, 3.0, 0)):
        held = np.pad(meaning, ((0, 0), (0, size - least)))
        held = held + part * generator.standard_normal(held.shape)
        turned = scale * held @ turn(generator, size) + scale * generator.standard_normal(size)
        rows.append(turned.astype(np.float32))
    return rows[0], rows[1]


def reference(x, y):
    """The rotation's map from float64 numpy: x_mean, y_mean, slopes."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    left, values, right = np.linalg.svd((x - x_mean).T @ (y - y_mean), full_matrices=False)
    kept = values > 1e-6 * values[0]
    scale = np.linalg.norm(y - y_mean) / np.linalg.norm(x - x_mean)
    return x_mean, y_mean, scale * left[:, kept] @ right[kept]


def mapped(x, y, rows):
    x_mean, y_mean, slopes = reference(x, y)
    return y_mean + (rows.astype(np.float64) - x_mean) @ slopes


def trimmed(x, y, trim, rounds):
    """The anchors that are left."""
    kept = np.arange(len(x))
    for _ in range(rounds):
        turned, rows = mapped(x[kept], y[kept], x[kept]), y[kept].astype(np.float64)
        center = rows.mean(axis=0)
        agreement = (unit(turned - center) * unit(rows - center)).sum(axis=1)
        best = np.argsort(-agreement, kind="stable")
        kept = np.sort(kept[best[: max(1, round(len(kept) * (1 - trim)))]])
    return kept


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_a_rough_rotation_has_the_directions_of_which_most_is_known(monkeypatch, shape):
    monkeypatch.setattr(linear, "ROUGH_DIRECTIONS", 12)
    generator = np.random.default_rng(0)
    left, right = (turn(generator, size)[:, :40] for size in shape)
    values = np.r_[np.linspace(3, 1, 12), np.linspace(1e-2, 1e-4, 28)]
    found = rough_polar(((left * values) @ right.T).astype(np.float32))
    assert np.abs(found - left[:, :12] @ right[:, :12].T).max() < 1e-4


def test_a_rough_rotation_is_exact_where_there_are_few_directions(monkeypatch):
    products = np.random.default_rng(0).standard_normal((12, 20)).astype(np.float32)
    monkeypatch.setattr(linear, "ROUGH_DIRECTIONS", 12)
    assert np.array_equal(rough_polar(products), polar(products))


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
@pytest.mark.parametrize("rank", [3, 7])
def test_factors_are_those_of_the_decomposition(shape, rank):
    generator = np.random.default_rng(rank)
    products = generator.standard_normal((shape[0], rank)) @ generator.standard_normal(
        (rank, shape[1])
    )
    found = factors(products)
    values = np.linalg.svd(products, compute_uv=False)[:rank]
    assert np.allclose(found.values, values)
    assert np.allclose(found.left * found.values @ found.right.T, products, atol=1e-5)
    for vectors in (found.left, found.right):
        assert np.allclose(vectors.T @ vectors, np.eye(rank), atol=1e-6)


@pytest.mark.parametrize("anchors", [10, 300])
@pytest.mark.parametrize("sizes", [(12, 24), (24, 12), (16, 16)])
def test_the_rotation_is_procrustes_own(sizes, anchors):
    x, y = two_spaces(anchors, *sizes, noise=0.5)
    found = rotation(pairs_of(x, y))
    x_mean, y_mean, slopes = reference(x, y)
    assert np.allclose(found.x_mean, x_mean) and np.allclose(found.y_mean, y_mean)
    assert np.allclose(found.slopes, slopes, atol=1e-4 * np.abs(slopes).max())


@pytest.mark.parametrize("sizes", [(12, 24), (24, 12), (16, 16)])
def test_a_turned_scaled_and_shifted_space_is_mapped_back(sizes):
    x, y = two_spaces(260, *sizes)
    exact, near = (method.prepare(x[:200], x[200:]).rows(y[:200])[:] for method in MAPS)
    assert exact.dtype == near.dtype == np.float32
    assert relative_error(exact, y[200:]).max() < 1e-5
    # an eighth is the regression's, which its penalty makes shorter
    assert relative_error(near, y[200:]).max() < 0.06


@pytest.mark.parametrize("trim, rounds", [(0.15, 2), (0.3, 1), (0.15, 0), (0, 2)])
def test_the_anchors_that_agree_least_are_trimmed(trim, rounds):
    x, y = two_spaces(260, 16, 20, noise=0.5)
    kept = trimmed(x[:200], y[:200], trim, rounds if trim else 0)
    made = Procrustes(trim, rounds).prepare(x[:200], x[200:]).rows(y[:200])[:]
    assert relative_error(made, mapped(x[kept], y[kept], x[200:])).max() < 1e-4


def test_wrong_pairs_are_what_is_trimmed():
    x, truth = two_spaces(300, 16, 16, noise=0.05)
    y = truth[:200].copy()
    wrong = np.random.default_rng(4).choice(200, 40, replace=False)
    y[wrong] = y[np.roll(wrong, 1)]
    right = np.setdiff1d(np.arange(200), wrong)
    untrimmed, made = (
        Procrustes(trim, 1).prepare(x[:200], x[200:]).rows(y)[:] for trim in (0, 0.2)
    )
    alone = Procrustes(0).prepare(x[right], x[200:]).rows(y[right])[:]
    assert relative_error(made, alone).max() < 1e-5
    errors = [relative_error(rows, truth[200:]).mean() for rows in (made, untrimmed)]
    assert errors[0] < 0.6 * errors[1]


def tempered(x, y, rows, length):
    """Rows by `align` without rounds, by its formula in float64."""
    (x_mean, y_mean, turn), y = reference(x, y), y.astype(np.float64)
    own, turned = y - y_mean, (x.astype(np.float64) - x_mean) @ turn
    regressed = ridge_reference(x, rows, y, 0.3) - y_mean
    rotated = length * (rows.astype(np.float64) - x_mean) @ turn
    both = 7 * own.T @ own + turned.T @ turned
    both += 0.01 * np.trace(both) / len(both) * np.eye(len(both))
    part = np.linalg.solve(both, turned.T @ turned)
    return y_mean + rotated + (regressed - rotated) @ part


@pytest.mark.parametrize("anchors", [10, 200])
@pytest.mark.parametrize("width", [20, 32])
@pytest.mark.parametrize("learned", [True, False])
def test_align_is_a_rotation_tempered_by_a_regression(width, learned, anchors):
    """Rotated to full length, if the helper's rows are more than noise."""
    x, y = two_spaces(1260, 24, width, noise=0 if learned else 0.5, alike=learned)
    x, known, y = x[anchors:], x[:anchors], y[:anchors]
    turned = mapped(known, y, x)
    regressed = ridge_reference(known, x, y, 0.3)
    assert relative_error(turned, regressed).min() > 0.01
    made = Align(rounds=0).prepare(known, x).rows(y)[:]
    assert relative_error(made, tempered(known, y, x, 1 if learned else 0.6)).max() < 1e-4


@pytest.mark.parametrize("scale", [2.0**80, 2.0**-80])
@pytest.mark.parametrize("method", MAPS, ids=str)
def test_how_long_the_helper_s_rows_are_does_not_matter(method, scale):
    x, y = two_spaces(260, 16, 20, noise=0.5)
    with np.errstate(over="raise", invalid="raise"):
        plain, made = (
            method.prepare(rows[:200], rows[200:]).rows(y[:200], y)[:]
            for rows in (x, x * np.float32(scale))
        )
    assert np.allclose(made, plain, rtol=1e-4)


@pytest.mark.parametrize("side", ["helper", "source"])
def test_where_turned_rows_vary_too_much_the_regression_makes_them(side):
    """In one direction, the helper's rows vary more than they should, or the source's less."""
    x, y = two_spaces(260, 16, 16, noise=0.3)
    rows, factor = (x, 5) if side == "helper" else (y, 0.01)
    loudest = np.linalg.svd(rows - rows.mean(axis=0))[2][3]
    rows += np.outer((rows - rows.mean(axis=0)) @ loudest, (factor - 1) * loudest)
    known, source = x[:200], y[:200]
    turned, made = (
        method.prepare(known, x[200:]).rows(source)[:] for method in (Procrustes(0), Align(0))
    )
    errors = [np.linalg.norm(rows - y[200:]) for rows in (turned, made)]
    assert errors[1] < 0.8 * errors[0]


def self_learning():
    """30 right and 120 wrong anchors that are wanted too, 20 sure ones; 400 missing tokens."""
    x, y = two_spaces(570, 16, 16, noise=0.1)
    source = y[:170].copy()
    source[50:170] = source[50 + np.random.default_rng(2).permutation(120)]
    wanted = np.vstack([x[20:170], x[170:]])
    own = np.concatenate([np.arange(20, 170), np.full(400, NO_ANCHOR)])
    return x[:170], wanted, own, source, y


def test_rounds_find_the_pairs_that_the_anchors_are_not():
    x, wanted, own, source, truth = self_learning()
    # the frequent words stand in another order than the tokens
    words = truth[np.random.default_rng(5).permutation(np.arange(20, 570))]
    errors = []
    for rounds in (0, 1, 3):
        prepared = Align(rounds).prepare(x, wanted, own)
        made = prepared.rows(source, words)[:]
        errors.append(relative_error(made, truth[20:]).mean())
        cuts = [0, 1, 1, 40, len(wanted)]
        parts = [prepared.rows(source, words)[a:b] for a, b in pairwise(cuts)]
        assert np.allclose(np.vstack(parts), made, atol=1e-4)
    assert errors[2] < 0.4 * errors[0]
    assert errors[2] < 0.9 * errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("words", [None, 0])
def test_without_words_or_wanted_tokens_there_are_no_rounds(words):
    x, wanted, own, source, truth = self_learning()
    given = None if words is None else truth[:words]
    made = Align().prepare(x, wanted, own).rows(source, given)[:]
    assert np.array_equal(made, Align(rounds=0).prepare(x, wanted, own).rows(source)[:])
    assert Align().prepare(x, wanted[:0]).rows(source, truth)[:].shape == (0, 16)


def test_sure_anchors_stay_in_every_round_and_unsure_ones_leave():
    x, wanted, own, source, truth = self_learning()
    made = Align(1).prepare(x, wanted, own).rows(source, truth[20:])[:]
    before = Procrustes(rounds=0).prepare(x, wanted, own).rows(source)[:]
    ours, theirs = found_between(before, truth[20:])
    known, rows = np.vstack([x[:20], wanted[ours]]), np.vstack([source[:20], truth[20:][theirs]])
    expected = Align(0).prepare(known, wanted).rows(rows, truth[20:])[:]
    assert relative_error(made, expected).max() < 1e-4


def two_tensors():
    """As `self_learning`, with two tensors of the source that each have noise of their own: their
    rows of the anchors and of words, and what the wanted rows should be."""
    x, wanted, own, _, truth = self_learning()
    generator = np.random.default_rng(7)
    mistaken = np.concatenate([np.arange(50), 50 + np.random.default_rng(2).permutation(120)])
    tables = []
    for width in (16, 24):
        plain = np.pad(truth, ((0, 0), (0, width - 16))) @ turn(generator, width)
        noise = 0.7 * truth.std() * generator.standard_normal(plain.shape)
        noisy = (plain + noise).astype(np.float32)
        tables.append((noisy[mistaken], noisy[20:], plain[20:]))
    return x, wanted, own, tables


def test_pairs_are_those_that_all_tensors_tell():
    x, wanted, own, tables = two_tensors()
    prepared = Align(1).prepare(x, wanted, own)
    made = Align(1).together([Table(prepared, *table[:2]) for table in tables])
    first = Procrustes(rounds=0).prepare(x, wanted, own)
    before = [first.rows(source)[:] for source, _, _ in tables]
    spaces = zip(before, tables, strict=True)
    scores = [similarities([(centred(rows), centred(words))]) for rows, (_, words, _) in spaces]
    ours, theirs = mutual(scores[0] + scores[1])
    for rows, (source, words, _) in zip(made, tables, strict=True):
        known, their_rows = (
            np.vstack([x[:20], wanted[ours]]),
            np.vstack([source[:20], words[theirs]]),
        )
        expected = Align(0).prepare(known, wanted).rows(their_rows, words)[:]
        assert relative_error(rows[:], expected).max() < 1e-4


def test_two_tensors_tell_more_than_each_alone():
    x, wanted, own, tables = two_tensors()
    prepared = Align().prepare(x, wanted, own)
    made = Align().together([Table(prepared, *table[:2]) for table in tables])
    for rows, (source, words, truth) in zip(made, tables, strict=True):
        alone = relative_error(prepared.rows(source, words)[:], truth).mean()
        assert relative_error(rows[:], truth).mean() < 0.95 * alone


def test_a_narrow_tensor_among_others_changes_nothing():
    x, wanted, own, tables = two_tensors()
    prepared = Align().prepare(x, wanted, own)
    first, last = [Table(prepared, *table[:2]) for table in tables]
    narrow = Table(prepared, first.anchors[:, :1], first.words[:, :1])
    made = [rows[:] for rows in Align().together([first, narrow, last])]
    assert np.array_equal(made[1], prepared.rows(narrow.anchors)[:])
    expected = [rows[:] for rows in Align().together([first, last])]
    assert np.array_equal(made[0], expected[0]) and np.array_equal(made[2], expected[1])
    (alone,) = Align().together([first])
    assert np.array_equal(alone[:], prepared.rows(first.anchors, first.words)[:])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_frequent_word_s_row_that_is_not_finite_is_refused(broken):
    x, wanted, own, source, truth = self_learning()
    words = truth.copy()
    words[7, 3] = broken
    with pytest.raises(TransferError, match="frequent token's row"):
        Align().prepare(x, wanted, own).rows(source, words)


def centred(rows):
    return Scaled(rows, rows.mean(axis=0, dtype=np.float64), 1)


def found_between(left, right):
    return mutual(similarities([(centred(left), centred(right))]))


def brute_mutual(left, right):
    left, right = (unit(rows - rows.mean(axis=0)) for rows in (left.astype(float), right))
    near = [
        [np.mean(sorted((float(a @ b) for b in others), reverse=True)[:10]) for a in rows]
        for rows, others in ((left, right), (right, left))
    ]
    scores = np.array(
        [
            [2 * float(a @ b) - near[0][i] - near[1][j] for j, b in enumerate(right)]
            for i, a in enumerate(left)
        ]
    )
    return [
        (i, int(scores[i].argmax()))
        for i in range(len(left))
        if scores[:, scores[i].argmax()].argmax() == i
    ]


@pytest.mark.parametrize("sizes", [(40, 60), (60, 40), (5, 30)])
def test_mutual_pairs_are_those_of_the_formula(sizes):
    generator = np.random.default_rng(1)
    left = generator.standard_normal((sizes[0], 6)).astype(np.float32)
    right = generator.standard_normal((sizes[1], 6)).astype(np.float32) + 1
    right[:5] = left[:5] + 1
    right[7:12] += generator.standard_normal(6).astype(np.float32)  # a dense place: hubs
    expected = brute_mutual(left, right)
    found = list(zip(*map(np.ndarray.tolist, found_between(left, right)), strict=True))
    assert found == expected
    if sizes[0] > 5:  # the hubs did matter
        cosine = unit(left - left.mean(axis=0)) @ unit(right - right.mean(axis=0)).T
        plain = cosine.argmax(axis=1)
        assert [(i, j) for i, j in enumerate(plain) if cosine[:, j].argmax() == i] != expected


def test_mutual_is_not_confused_by_a_large_mean():
    left = np.random.default_rng(1).standard_normal((400, 6)).astype(np.float32)
    right = (0.02 * left[::-1] + 1e4).astype(np.float32)
    found = found_between(left, right)
    expected = found_between(left, right - np.float32(1e4))
    assert len(found[0]) > 100
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("method", MAPS, ids=str)
def test_blocks_change_nothing(method):
    x, wanted, own, source, truth = self_learning()
    whole = method.prepare(x, wanted, own).rows(source, truth[20:])[:]
    with limited_to(32 * 4 * 16 * 7):
        made = method.prepare(x, wanted, own).rows(source, truth[20:])[:]
    assert relative_error(made, whole).max() < 1e-4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("helper, source", [(1e-8, 1), (1e8, 1), (1, 1e-8), (1, 1e8), (1e8, 1e8)])
@pytest.mark.parametrize("method", MAPS, ids=str)
def test_the_scale_of_the_rows_does_not_matter(method, helper, source):
    x, wanted, own, y, truth = self_learning()
    expected = method.prepare(x, wanted, own).rows(y, truth[20:])[:]
    with np.errstate(all="raise"):
        prepared = method.prepare(x * np.float32(helper), wanted * np.float32(helper), own)
        made = prepared.rows(y * np.float32(source), truth[20:] * np.float32(source))[:]
    assert relative_error(made / source, expected).max() < 1e-4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("place, precision", [(0, 2e-5), (1, 1e-3)])
@pytest.mark.parametrize("method", MAPS, ids=str)
def test_a_large_mean_takes_nothing_from_the_rest(method, place, precision):
    x, y = two_spaces(260, 16, 16, noise=0.2)
    shifts = [np.float32(0), np.float32(0)]
    shifts[place] = np.float32(1e4)
    x, y = 50 * x + shifts[0], y + shifts[1]
    with np.errstate(all="raise"):
        made = method.prepare(x[:200], x[200:]).rows(y[:200], y)[:]
    plain = method.prepare(x[:200] - shifts[0], x[200:] - shifts[0])  # exact in float32
    expected = plain.rows(y[:200] - shifts[1], y - shifts[1])[:]
    assert relative_error(made - shifts[1], expected).max() < precision


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", MAPS, ids=str)
def test_rows_are_finite_where_there_is_little_to_learn_from(method):
    anchors, missing, source = helper_and_source(anchors=9)
    with np.errstate(all="raise"):
        few = method.prepare(anchors, missing).rows(source, source)[:]
        alike = method.prepare(anchors[[0] * 9], missing).rows(source)[:]
        flat = method.prepare(anchors, missing).rows(source[[2] * 9])[:]
        unsure = method.prepare(anchors, anchors, np.arange(9)).rows(source, source)[:]
    assert np.isfinite(few).all() and np.isfinite(unsure).all()
    assert np.abs(few).max() < 10 * np.abs(source).max()
    center = source.mean(axis=0) if method.name == "align" else alike[0]
    assert np.allclose(alike, center, atol=1e-5)
    assert np.allclose(flat, source[2], atol=1e-5)


@pytest.mark.parametrize("method", [Procrustes(rounds=0), Align()], ids=str)
def test_a_token_without_a_direction_gets_the_mean(method):
    anchors, missing, source = helper_and_source()
    missing[3], missing[50] = 0, anchors.mean(axis=0, dtype=np.float64)
    prepared = method.prepare(anchors, missing)
    assert list(prepared.guarded["no direction in the helper"]) == [3, 50]
    made = prepared.rows(source)[:]
    assert np.allclose(made[[3, 50]], source.mean(axis=0), atol=1e-5)
    for part in (slice(2, 5), slice(49, 52)):
        assert np.allclose(prepared.rows(source)[part], made[part], atol=1e-5)
    assert prepared.nearest([3], 5)[0][0].tolist() == []


def test_nan_in_the_source_never_becomes_a_row():
    anchors, missing, source = helper_and_source()
    broken = source.copy()
    broken[7, 3] = np.nan
    for method in MAPS:
        with pytest.raises(TransferError, match="source has NaN"):
            method.prepare(anchors, missing).rows(broken)
    with pytest.raises(TransferError, match="frequent"):
        Align().prepare(anchors, missing).rows(source, broken)


def test_options_out_of_range_are_refused():
    for options in ({"trim": 1}, {"trim": -0.1}, {"trim": float("nan")}, {"rounds": -1}):
        with pytest.raises(TransferError, match=next(iter(options))):
            Procrustes(**options)
    with pytest.raises(TransferError, match="rounds"):
        Align(rounds=1.5)
