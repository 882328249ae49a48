"""The methods against their formulas, written out in float64 numpy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from truths import cosines, helper_and_source, knn_reference, relative_error, sparsemax_by_bisection

from clpstream import Align, Clp, Knn, Omp, Procrustes, Random, Ridge, TransferError
from clpstream.memory import limited_to
from clpstream.transfer import NO_ANCHOR, search
from clpstream.transfer.rows import Unit
from clpstream.transfer.weights import similarity, softmax, sparsemax, sparsemax_threshold

WEIGHTS = ("softmax", "sparsemax", "similarity")


@pytest.mark.parametrize("seed", range(5))
def test_clp_is_the_papers_formula(seed):
    anchors, missing, source = helper_and_source(seed=seed)
    weights = cosines(anchors, missing, center=False)
    condition = weights.mean(axis=1) / np.sqrt((weights**2).mean(axis=1))
    expected = (weights @ source.astype(np.float64)) / weights.sum(axis=1, keepdims=True)
    made = Clp().prepare(anchors, missing).rows(source)[:]
    good = condition > 0.05
    assert good.sum() > 100
    assert relative_error(made[good], expected[good]).max() < 1e-5


def test_clp_guards_rows_with_a_negative_or_tiny_denominator():
    anchors, missing, source = helper_and_source(shift=0.0, missing=400)
    weights = cosines(anchors, missing, center=False)
    condition = weights.mean(axis=1) / np.sqrt((weights**2).mean(axis=1))
    prepared = Clp().prepare(anchors, missing)
    negative = prepared.guarded["negative denominator"]
    near_zero = prepared.guarded["denominator near zero"]
    assert set(negative) == set(np.flatnonzero(condition < 0))
    assert all(0 <= condition[row] < 0.015 for row in near_zero)
    assert len(negative) > 20
    made = prepared.rows(source)[:]
    guarded = np.concatenate([negative, near_zero])
    fallback = knn_reference(anchors, missing, source, 10, "similarity", 1, center=False)
    assert relative_error(made[guarded], fallback[guarded]).max() < 1e-5
    assert np.linalg.norm(made[guarded], axis=1).max() <= np.linalg.norm(source, axis=1).max()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("k", [1, 10, 300, 1000])
def test_knn_is_the_weighted_mean_of_the_nearest(k, weights, center):
    anchors, missing, source = helper_and_source()
    method = Knn(neighbors=k, weights=weights, temperature=0.1, center=center)
    made = method.prepare(anchors, missing).rows(source)[:]
    expected = knn_reference(anchors, missing, source, k, weights, 0.1, center)
    assert made.dtype == np.float32
    assert relative_error(made, expected).max() < 1e-5


@pytest.mark.parametrize("method", [Clp(), Knn(), Knn(weights="sparsemax")], ids=str)
def test_rows_do_not_depend_on_the_blocks_they_are_made_in(method):
    anchors, missing, source = helper_and_source()
    whole = method.prepare(anchors, missing).rows(source)[:]
    with limited_to(32 * 7 * 4 * anchors.shape[1]):
        rows = method.prepare(anchors, missing).rows(source)
        parts = np.vstack([rows[start : start + 13] for start in range(0, 120, 13)])
    assert relative_error(parts, whole).max() < 1e-5


@pytest.mark.parametrize("method", [Clp(), Knn(), Knn(center=False, weights="similarity")], ids=str)
def test_nearest_tells_the_weights_that_made_the_row(method):
    anchors, missing, source = helper_and_source()
    prepared = method.prepare(anchors, missing)
    rows = prepared.rows(source)[:]
    for row in (0, 57, 119):
        ((indices, weights),) = prepared.nearest([row], len(anchors))
        assert weights.sum() == pytest.approx(1, abs=1e-4)
        assert list(weights) == sorted(weights, reverse=True)
        assert np.allclose(weights @ source[indices], rows[row], atol=1e-4)


@pytest.mark.parametrize("method", [Align(), Clp(), Clp(clip_negative=True), Ridge()], ids=str)
def test_the_nearest_of_many_are_told_in_little_memory(method):
    """The scores of all anchors would take 24 MiB in float32."""
    anchors, missing, _ = helper_and_source(anchors=1500, missing=4000, shift=0.3)
    prepared = method.prepare(anchors, missing)
    expected = [prepared.nearest([row], 2)[0] for row in range(0, 4000, 100)]
    with limited_to(4 << 20):
        tracemalloc.start()
        found = prepared.nearest(range(4000), 2)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 12 << 20
    for (ids, weights), (same, theirs) in zip(found[::100], expected, strict=True):
        assert ids.tolist() == same.tolist()
        assert np.allclose(weights, theirs, rtol=1e-4)


@pytest.mark.parametrize("method", [Clp(), Knn(), Knn(weights="sparsemax")], ids=str)
def test_a_token_without_a_direction_gets_the_mean_of_all_anchors(method):
    anchors, missing, source = helper_and_source()
    expected = method.prepare(anchors, missing).rows(source)[:]
    missing[3] = 0
    missing[50] = 0 if method.name == "clp" else anchors.mean(axis=0, dtype=np.float64)
    prepared = method.prepare(anchors, missing)
    assert list(prepared.guarded["no direction in the helper"]) == [3, 50]
    made = prepared.rows(source)[:]
    assert np.allclose(made[[3, 50]], source.mean(axis=0), atol=1e-6)
    others = np.setdiff1d(np.arange(len(missing)), [3, 50])
    assert np.allclose(made[others], expected[others], atol=1e-6)
    made = method.prepare(anchors, np.zeros_like(missing)).rows(source)[:]
    assert np.allclose(made, source.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("method", [Clp(), Knn(), Knn(weights="similarity")], ids=str)
def test_one_anchor_or_no_missing_token_is_enough(method):
    anchors, missing, source = helper_and_source()
    made = method.prepare(anchors[:1], missing).rows(source[:1])[:]
    assert np.allclose(made, np.repeat(source[:1], len(missing), axis=0), atol=1e-5)
    assert method.prepare(anchors, missing[:0]).rows(source)[:].shape == (0, source.shape[1])


@pytest.mark.parametrize("method", [Clp(), Knn(), Knn(weights="sparsemax")], ids=str)
def test_float64_arrays_give_the_same_rows(method):
    rows = helper_and_source()
    expected = method.prepare(*rows[:2]).rows(rows[2])[:]
    wide = [array.astype(np.float64) for array in rows]
    made = method.prepare(*wide[:2]).rows(wide[2])[:]
    assert made.dtype == np.float32
    assert relative_error(made, expected).max() < 1e-5


def test_a_low_temperature_keeps_the_precision():
    anchors, missing, source = helper_and_source()
    made = Knn(temperature=0.01).prepare(anchors, missing).rows(source)[:]
    expected = knn_reference(anchors, missing, source, 10, "softmax", 0.01, True)
    assert relative_error(made, expected).max() < 1e-5


@pytest.mark.parametrize("method", [Clp(), Knn()], ids=str)
def test_arrays_that_do_not_fit_are_refused(method):
    anchors, missing, source = helper_and_source()
    with pytest.raises(TransferError, match="no anchors"):
        method.prepare(anchors[:0], missing)
    with pytest.raises(TransferError, match="wide"):
        method.prepare(anchors[:, 1:], missing)
    with pytest.raises(TransferError, match="299 rows for 300 anchors"):
        method.prepare(anchors, missing).rows(source[1:])
    with pytest.raises(IndexError, match="consecutive"):
        method.prepare(anchors, missing).rows(source)[::2]


@pytest.mark.parametrize("method", [Clp(), Knn(), Knn(weights="sparsemax")], ids=str)
@pytest.mark.parametrize("place", [0, 1])
def test_nan_never_becomes_a_row(method, place):
    rows = list(helper_and_source())
    rows[place][7, 3] = np.nan
    with pytest.raises(TransferError, match="NaN"):
        method.prepare(rows[0], rows[1])


def test_centring_keeps_what_is_small_beside_a_large_mean():
    anchors, missing, source = helper_and_source(shift=1e4)
    expected = knn_reference(anchors, missing, source, 10, "softmax", 0.1, True)
    made = Knn().prepare(anchors, missing).rows(source)[:]
    assert relative_error(made, expected).max() < 1e-4


def test_sparsemax_of_very_many_equal_anchors_stays_exact():
    anchors, missing, source = helper_and_source(anchors=3000, missing=300, d_helper=4)
    method = Knn(weights="sparsemax", center=False)
    made = method.prepare(anchors, missing).rows(source)[:]
    expected = knn_reference(anchors, missing, source, 10, "sparsemax", 0.1, False)
    assert relative_error(made, expected).max() < 1e-4


def test_helper_rows_of_any_scale_give_the_same_rows():
    anchors, missing, source = helper_and_source()
    expected = Knn().prepare(anchors, missing).rows(source)[:]
    for scale in (1e-30, 1e30):
        tiny = (anchors * np.float32(scale)), (missing * np.float32(scale))
        assert relative_error(Knn().prepare(*tiny).rows(source)[:], expected).max() < 1e-4


def test_equal_scores_keep_the_order_of_the_anchors():
    anchors = Unit(np.repeat(np.eye(4, dtype=np.float32), 50, axis=0), None)
    queries = search.Queries(
        Unit(np.eye(4, dtype=np.float32), None), np.arange(4), np.full(4, NO_ANCHOR)
    )
    for size in (1 << 20, 16 * 4 * 9):
        with limited_to(32 * size):
            _, ids = search.nearest(queries, anchors, 3)
        assert ids.tolist() == [[first, first + 1, first + 2] for first in (0, 50, 100, 150)]


@pytest.mark.parametrize("d", [3, 40])
def test_the_neighbours_are_exact_where_float32_can_not_tell_them_apart(d):
    generator = np.random.default_rng(1)
    base = generator.standard_normal(d)
    anchors = np.vstack([base + 3e-4 * generator.standard_normal((60, d)), -np.eye(d)])
    missing = base + 0.3 * generator.standard_normal((200, d))
    anchors, missing = anchors.astype(np.float32), missing.astype(np.float32)
    scores = cosines(anchors, missing, center=False)
    queries = search.Queries(Unit(missing, None), np.arange(200), np.full(200, NO_ANCHOR))
    _, ids = search.nearest(queries, Unit(anchors, None), 5)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    assert np.array_equal(np.sort(ids, axis=1), np.sort(expected, axis=1))


def test_of_many_equal_anchors_the_lowest_ids_are_taken():
    """As unused tokens have them, which two models may share by the hundred."""
    generator = np.random.default_rng(1)
    anchors = generator.standard_normal((3000, 64)).astype(np.float32)
    same = np.sort(generator.choice(3000, 300, replace=False))
    anchors[same] = anchors[same[0]]
    missing = anchors[same[0]] + 0.3 * generator.standard_normal((500, 64)).astype(np.float32)
    prepared = Knn(center=False).prepare(anchors, missing)
    for indices, _ in prepared.nearest(range(500), 10):
        assert sorted(indices) == same[:10].tolist()


def test_sparsemax_refuses_what_it_can_not_keep(monkeypatch):
    anchors, missing, _ = helper_and_source()
    monkeypatch.setattr("clpstream.transfer.knn._MOST_WEIGHTS", 500)
    with pytest.raises(TransferError, match="almost parallel"):
        Knn(weights="sparsemax").prepare(anchors, missing)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"neighbors": 0}, "neighbors"),
        ({"weights": "gauss"}, "weights"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, name):
    with pytest.raises(TransferError, match=name):
        Knn(**parameters)


@pytest.mark.parametrize(
    ("method", "name"),
    [(Knn, "neighbors"), (Omp, "atoms"), (Align, "rounds"), (Procrustes, "rounds"),
     (Random, "seed")],
)  # fmt: skip
def test_a_number_in_quotes_is_told_from_one_without(method, name):
    with pytest.raises(TransferError, match=f"{name} is '5'; it must be a number"):
        method(**{name: "5"})


scores = arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 30)),
    elements=st.floats(-1, 1, width=32),
).map(lambda rows: -np.sort(-rows, axis=1))


@given(scores)
@settings(deadline=None)
def test_sparsemax_is_the_projection_onto_the_simplex(rows):
    weights, _ = sparsemax(rows)
    for row, weight in zip(rows, weights, strict=True):
        assert np.allclose(weight, sparsemax_by_bisection(row), atol=1e-9)


@given(scores, st.integers(1, 30))
@settings(deadline=None)
def test_sparsemax_of_the_best_is_that_of_all_where_it_says_so(rows, k):
    few, exact = sparsemax(rows[:, :k])
    everything, _ = sparsemax(rows)
    for row in np.flatnonzero(exact):
        assert np.allclose(everything[row, : few.shape[1]], few[row], atol=1e-9)


@given(scores)
@settings(deadline=None)
def test_the_threshold_of_sparsemax_needs_no_order(rows):
    shuffled = np.random.default_rng(0).permuted(rows, axis=1)
    for row, threshold in zip(rows, sparsemax_threshold(shuffled), strict=True):
        assert np.allclose(np.maximum(row - threshold, 0), sparsemax_by_bisection(row), atol=1e-9)


@given(scores, st.floats(0.01, 10))
@settings(deadline=None)
def test_weights_are_a_distribution(rows, temperature):
    for weights in (softmax(rows, temperature), similarity(rows), sparsemax(rows)[0]):
        assert (weights >= 0).all()
        assert np.allclose(weights.sum(axis=1), 1)


@given(arrays(np.float32, (4, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
@settings(deadline=None)
def test_unit_rows_have_norm_one_or_are_zero(rows):
    norms = np.linalg.norm(Unit(rows, None)[:].astype(np.float64), axis=1)
    alive = np.abs(rows).max(axis=1) > 1e-37
    assert np.allclose(norms[alive], 1, atol=1e-5)
    assert ((norms < 1.001) & np.isfinite(norms)).all()
