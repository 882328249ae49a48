"""A shared token's row is made as if it were missing: as if its anchor were not there.

That is what most methods promise. The others say that the row comes from a map that all anchors
make, and hold all the rest.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from truths import cosines, helper_and_source, relative_error

from clpstream import Clp, Knn, Mean, Omp, Random, Ridge, Subword, TransferError
from clpstream.memory import limited_to
from clpstream.transfer import METHODS, NO_ANCHOR, Align, Procrustes

CENTRED = ("clpstream.transfer.knn.mean", "clpstream.transfer.omp.mean")
CASES = {
    "align": [Align(), Align(rounds=0)],
    "clp": [Clp(), Clp(clip_negative=True)],
    "knn": [
        Knn(center=center, weights=weights, neighbors=neighbors)
        for center in (True, False)
        for weights in ("softmax", "sparsemax", "similarity")
        for neighbors in (1, 10, 1000)
    ],
    "mean": [Mean()],
    "omp": [Omp(1), Omp(5), Omp(5, center=False), Omp()],
    "procrustes": [Procrustes(), Procrustes(trim=0)],
    "random": [Random(seed=5)],
    "ridge": [Ridge(penalty=1e-3), Ridge(penalty=0.3)],
    "subword": [Subword()],
}
EVERY = [method for methods in CASES.values() for method in methods]
ONE_MAP = [method for method in EVERY if method.name in ("align", "procrustes")]
LEAVING_OUT = [method for method in EVERY if method not in ONE_MAP]


@pytest.fixture
def fixed_center(monkeypatch):
    """Methods subtract one mean, whichever anchors they get."""
    center = np.random.default_rng(3).standard_normal(24)
    for place in CENTRED:
        monkeypatch.setattr(place, lambda rows: center)


def shared_and_missing(anchors, missing):
    """Wanted rows, of which every other is a shared token, and their own anchors."""
    own = np.full(60, NO_ANCHOR)
    own[::2] = np.random.default_rng(1).choice(len(anchors), 30, replace=False)
    wanted = np.where((own >= 0)[:, None], anchors[own], missing[:60])
    return wanted, own


def with_same_terms(method, anchors, others):
    """Ridge's penalty is a multiple of the anchors' variance, which changes with them."""
    if method.name != "ridge":
        return method
    before, after = (
        np.var(rows.astype(np.float64), axis=0) * len(rows) for rows in (anchors, others)
    )
    return Ridge(penalty=method.penalty * before.sum() / after.sum())


def one_by_one(method, anchors, wanted, own, source):
    """Each row from a table without its own anchor."""
    rows = []
    for place, anchor in enumerate(own):
        others = np.delete(np.arange(len(anchors)), anchor if anchor >= 0 else [])
        prepared = with_same_terms(method, anchors, anchors[others]).prepare(
            anchors[others], wanted
        )
        rows.append(prepared.rows(source[others])[:][place])
    return np.array(rows)


def test_every_method_is_tried():
    assert set(CASES) == set(METHODS)


@pytest.mark.parametrize("method", ONE_MAP, ids=str)
def test_one_map_serves_shared_and_missing_tokens_and_says_so(method):
    assert "row of a shared token comes from the same map" in " ".join(method.__doc__.split())
    anchors, missing, source = helper_and_source(anchors=120, d_source=17)
    wanted, own = shared_and_missing(anchors, missing)
    made = method.prepare(anchors, wanted, own).rows(source)[:]
    with_own = method.prepare(anchors, wanted).rows(source)[:]
    assert relative_error(made, with_own).max() < 1e-5


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("method", LEAVING_OUT, ids=str)
def test_a_shared_token_is_made_as_if_its_anchor_were_not_there(method, shift, fixed_center):
    anchors, missing, source = helper_and_source(anchors=120, d_source=17, shift=shift)
    wanted, own = shared_and_missing(anchors, missing)
    wanted[10] = anchors[own[10]] = 0
    made = method.prepare(anchors, wanted, own).rows(source)[:]
    expected = one_by_one(method, anchors, wanted, own, source)
    assert relative_error(made, expected).max() < 2e-5
    with_own = method.prepare(anchors, wanted).rows(source)[:]
    assert relative_error(with_own[::2], expected[::2]).min() > 1e-5
    assert relative_error(with_own[1::2], expected[1::2]).max() < 1e-6


@pytest.mark.parametrize("method", LEAVING_OUT, ids=str)
def test_the_own_anchor_may_have_another_row_than_the_token(method, fixed_center):
    anchors, missing, source = helper_and_source(anchors=120, d_source=17)
    _, own = shared_and_missing(anchors, missing)
    made = method.prepare(anchors, missing[:60], own).rows(source)[:]
    expected = one_by_one(method, anchors, missing[:60], own, source)
    assert relative_error(made, expected).max() < 2e-5


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_a_tensor_may_be_one_wide(method):
    anchors, missing, source = helper_and_source(anchors=120, d_source=17)
    wanted, own = shared_and_missing(anchors, missing)
    prepared = method.prepare(anchors, wanted, own)
    made = prepared.rows(source[:, :1])[:]
    assert made.shape == (60, 1)
    if method in ONE_MAP:  # one column can't be turned: it is regressed, without the own anchor
        left_out = Ridge().prepare(anchors, wanted, own).rows(source[:, :1])[:]
        assert np.array_equal(made, left_out)
        with_own = method.prepare(anchors, wanted).rows(source[:, :1])[:]
        assert (made[::2] != with_own[::2]).mean() > 0.9
    elif method.name != "random":
        assert np.allclose(made, prepared.rows(source)[:][:, :1], atol=1e-5)


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_rows_do_not_depend_on_the_slices_that_are_asked_for(method):
    anchors, missing, source = helper_and_source(anchors=120, d_source=17)
    wanted, own = shared_and_missing(anchors, missing)
    whole = method.prepare(anchors, wanted, own).rows(source)[:]
    cuts = [0, 1, 1, 8, 20, 59, 60]
    with limited_to(32 * 4 * 24 * 7):
        rows = method.prepare(anchors, wanted, own).rows(source)
        parts = [rows[start:stop] for start, stop in pairwise(cuts)]
    assert relative_error(np.vstack(parts), whole).max() < 1e-5
    assert rows[20:8].shape == (0, 17)


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_the_own_anchor_is_not_among_the_nearest(method):
    anchors, missing, source = helper_and_source(anchors=120, d_source=17)
    wanted, own = shared_and_missing(anchors, missing)
    prepared = method.prepare(anchors, wanted, own)
    centred = method.name == "omp" and method.center
    for row, (ids, weights) in enumerate(prepared.nearest(range(60), 200)):
        assert own[row] not in ids
        assert len(ids) == len(weights) == len(set(ids.tolist()))
        assert (np.diff(weights) <= 0).all()
        if method.name != "random" and not centred and method not in ONE_MAP:
            assert np.allclose(
                weights @ source[ids], prepared.rows(source)[row : row + 1], atol=1e-4
            )
        assert [place.tolist() for place in prepared.nearest([row], 3)[0]] == [
            ids[:3].tolist(),
            pytest.approx(weights[:3].tolist()),
        ]


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_own_anchors_that_do_not_fit_are_refused(method):
    anchors, missing, _ = helper_and_source(anchors=120)
    for own in ([0], [[0] * 60], [120] * 60, [-2] * 60):
        with pytest.raises(TransferError, match="own"):
            method.prepare(anchors, missing[:60], np.array(own))
    with pytest.raises(TransferError, match="one anchor only"):
        method.prepare(anchors[:1], missing[:2], np.array([NO_ANCHOR, 0]))


@pytest.mark.parametrize("method", EVERY, ids=str)
@pytest.mark.parametrize("place", [0, 1])
def test_nan_never_becomes_a_row(method, place):
    anchors, missing, _ = helper_and_source(anchors=120)
    (anchors, missing)[place][7, 3] = np.nan
    if method.reads_helper:
        with pytest.raises(TransferError, match="NaN"):
            method.prepare(anchors, missing)


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_one_anchor_gives_its_row_to_all(method):
    anchors, missing, source = helper_and_source()
    if method.name == "omp" and not method.center:
        pytest.skip("without a center, one anchor gives a multiple of its row")
    made = method.prepare(anchors[:1], missing).rows(source[:1])[:]
    assert np.allclose(made, np.repeat(source[:1], len(missing), axis=0), atol=1e-5)


@pytest.mark.parametrize("method", LEAVING_OUT, ids=str)
def test_two_anchors_leave_the_other_one(method):
    anchors, _, source = helper_and_source()
    if method.name == "omp" and not method.center:
        source = anchors  # a multiple of the other one
        other, row = anchors[1::-1].astype(np.float64), anchors[:2]
        shares = (other * row).sum(axis=1) / (other * other).sum(axis=1)
    else:
        shares = np.ones(2)
    made = method.prepare(anchors[:2], anchors[:2], np.array([0, 1])).rows(source[:2])[:]
    precision = 1e-2 if method.name == "ridge" else 1e-5  # the row itself is nearly all of the map
    assert np.allclose(made, shares[:, None] * source[1::-1], atol=precision)


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_methods_that_read_no_helper_take_rows_without_columns(method):
    anchors, missing, source = helper_and_source(anchors=120)
    assert METHODS[method.name]().reads_helper == method.reads_helper
    assert 1 <= method.fewest(24, 40) <= 1000
    if not method.reads_helper:
        expected = method.prepare(anchors, missing).rows(source)[:]
        made = method.prepare(anchors[:, :0], missing[:, :0]).rows(source)[:]
        assert np.array_equal(made, expected)


@pytest.mark.parametrize("k", [3, 10, 299])
def test_equal_anchors_are_told_apart_without_the_own_one(k):
    """Of many anchors with one row, a token that is one of them gets the lowest others."""
    generator = np.random.default_rng(1)
    anchors = generator.standard_normal((3000, 64)).astype(np.float32)
    same = np.sort(generator.choice(3000, 300, replace=False))
    anchors[same] = anchors[same[0]]
    prepared = Knn(k, center=False).prepare(anchors, anchors[same], same)
    for place, (ids, _) in enumerate(prepared.nearest(range(300), k)):
        assert sorted(ids) == np.delete(same, place)[:k].tolist()


def test_neighbours_closer_than_float32_are_those_of_the_formula():
    generator = np.random.default_rng(1)
    base = generator.standard_normal(40)
    anchors = base + 3e-4 * generator.standard_normal((80, 40))
    anchors = anchors.astype(np.float32)
    scores = cosines(anchors, anchors, center=False)
    np.fill_diagonal(scores, -2)
    expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :5], axis=1)
    prepared = Knn(5, center=False).prepare(anchors, anchors, np.arange(80))
    found = [np.sort(ids) for ids, _ in prepared.nearest(range(80), 5)]
    assert np.array_equal(found, expected)
