"""Orthogonal matching pursuit against the plain algorithm, one token at a time in float64."""

from __future__ import annotations

import contextlib
import errno
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import FakeCuPy
from truths import helper_and_source, relative_error

from clpstream import Omp, TransferError
from clpstream.device import find, on_device
from clpstream.memory import limited_to
from clpstream.transfer import NO_ANCHOR, pursuit
from clpstream.transfer.gram import GRAM_ERROR, Gram
from clpstream.transfer.omp import _coefficients
from clpstream.transfer.pursuit import Room, pursue
from clpstream.transfer.rows import Unit


@pytest.fixture(autouse=True, params=["products", "gram", "gpu"])
def way(request, monkeypatch):
    """All tests without a Gram matrix, which so few anchors don't get, with one, and on a GPU (a
    stand-in)."""
    monkeypatch.setattr(pursuit, "_LARGE", 0 if request.param == "gram" else 1 << 62)
    with contextlib.ExitStack() as stack:
        if request.param == "gpu":
            FakeCuPy(monkeypatch)
            stack.enter_context(on_device(find("cuda")))
        yield request.param


def reference(anchors, missing, atoms, center, own=None):
    """For each token the chosen anchors, in their order, and their coefficients."""
    x, queries = anchors.astype(np.float64), missing.astype(np.float64)
    if center:
        x, queries = (
            x - anchors.mean(axis=0, dtype=np.float64),
            queries - anchors.mean(axis=0, dtype=np.float64),
        )
    norms = np.linalg.norm(x, axis=1)
    units = np.divide(x, norms[:, None], where=norms[:, None] > 0, out=np.zeros_like(x))
    found = []
    for place, query in enumerate(queries):
        chosen, left, coefficients = [], query, np.empty(0)
        while len(chosen) < min(atoms, len(x)):
            scores = np.abs(units @ left) / max(np.linalg.norm(left), 1e-300)
            if own is not None and own[place] >= 0:
                scores[own[place]] = 0
            size = np.linalg.norm(left) / max(np.linalg.norm(query), 1e-300)
            if size < 1e-5 or scores.max() < 1e-5:
                break
            chosen.append(int(scores.argmax()))
            coefficients = np.linalg.lstsq(x[chosen].T, query, rcond=None)[0]
            left = query - coefficients @ x[chosen]
        found.append((chosen, coefficients))
    return found


def rows_of(found, source, center):
    source = source.astype(np.float64)
    mean = source.mean(axis=0) if center else 0
    return np.array([mean + weights @ (source[chosen] - mean) for chosen, weights in found])


def random_rows(anchors=300, missing=80, d=24, seed=0):
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((anchors + missing, d)).astype(np.float32)
    return rows[:anchors], rows[anchors:], generator.standard_normal((anchors, 30), np.float32)


def correlated(seed=0):
    return helper_and_source(seed=seed)


def coherent(seed=0):
    """Anchors that are almost multiples of one another."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal((15, 40))
    rows = np.repeat(base, 20, axis=0) + 0.02 * generator.standard_normal((300, 40))
    rows *= generator.uniform(0.1, 10, (300, 1))
    missing = generator.standard_normal((60, 40))
    source = generator.standard_normal((300, 30))
    return [array.astype(np.float32) for array in (rows, missing, source)]


@pytest.mark.parametrize("data", [random_rows, correlated, coherent])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("atoms", [1, 2, 8, 20])
def test_the_anchors_are_those_of_the_plain_algorithm(data, center, atoms):
    anchors, missing, source = data()
    prepared = Omp(atoms, center).prepare(anchors, missing)
    found = reference(anchors, missing, atoms, center)
    told = prepared.nearest(range(len(missing)), atoms + 1)
    for (ids, weights), (chosen, coefficients) in zip(told, found, strict=True):
        assert sorted(ids) == sorted(chosen)
        order = np.argsort(-coefficients)
        assert np.allclose(weights, coefficients[order], rtol=1e-3, atol=1e-4)
    made = prepared.rows(source)[:]
    assert made.dtype == np.float32
    assert relative_error(made, rows_of(found, source, center)).max() < 1e-3


@pytest.mark.parametrize("near", [1, 0.01])
def test_anchors_that_are_almost_parallel_are_told_apart(near):
    """Rounding that brings back what was taken out would change the choice."""
    generator = np.random.default_rng(0)
    base = generator.standard_normal((15, 40))
    anchors = np.repeat(base, 20, axis=0) + 1e-3 * generator.standard_normal((300, 40))
    missing = generator.standard_normal((60, 15)) @ base
    missing += near * generator.standard_normal((60, 40))
    anchors, missing = anchors.astype(np.float32), missing.astype(np.float32)
    found = reference(anchors, missing, 30, center=False)
    told = Omp(30, center=False).prepare(anchors, missing).nearest(range(60), 30)
    for (ids, _), (chosen, _) in zip(told, found, strict=True):
        assert sorted(ids) == sorted(chosen)


def test_an_anchor_that_is_chosen_twice_is_no_failure():
    anchors = np.eye(4, dtype=np.float32)
    wanted = np.array([[2, 5, 1, 1]], np.float32)
    values = _coefficients(wanted, anchors, None, np.array([[0, 0, 1]]), np.array([3]))[0]
    assert np.allclose([values[0] + values[1], values[2]], [2, 5], atol=1e-5)


def test_coefficients_are_those_of_least_squares():
    anchors, missing, source = random_rows()
    found = reference(anchors, missing, 8, True)
    made = Omp(8).prepare(anchors, missing).rows(source)[:]
    assert relative_error(made, rows_of(found, source, True)).max() < 1e-5


def test_shared_tokens_pass_over_their_own_anchor():
    anchors, _, source = random_rows()
    own = np.arange(300)
    own[::3] = NO_ANCHOR
    prepared = Omp(6).prepare(anchors, anchors, own)
    found = reference(anchors, anchors, 6, True, own)
    for row, (ids, _) in enumerate(prepared.nearest(range(300), 6)):
        assert sorted(ids) == sorted(found[row][0])
        assert len(ids) == (6 if row % 3 else 1)
    assert relative_error(prepared.rows(source)[::][::3], source[::3]).max() < 1e-5


@pytest.mark.parametrize("anchors", [7, 24, 300])
def test_it_ends_where_nothing_is_left(anchors):
    """With more atoms than anchors, or than dimensions, the row is as close as it can be."""
    known, missing, _ = random_rows(anchors)
    prepared = Omp(64, center=False).prepare(known, missing)
    for ids, _ in prepared.nearest(range(80), 100):
        assert 20 <= len(ids) <= 24 or len(ids) == anchors
    slopes = np.random.default_rng(1).standard_normal((24, 30))
    made = prepared.rows((known @ slopes).astype(np.float32))[:]
    closest = (
        missing @ np.linalg.pinv(known.astype(np.float64)) @ known if anchors < 24 else missing
    )
    assert relative_error(made, closest @ slopes).max() < 1e-3


@pytest.mark.parametrize("center", [True, False])
def test_of_equal_anchors_the_first_is_taken_once(center):
    anchors, missing, _ = random_rows()
    places = np.sort(np.random.default_rng(1).permutation(900))
    repeated = anchors[places // 3]
    expected = reference(anchors, missing, 10, center)
    prepared = Omp(10, center).prepare(repeated, missing)
    for (ids, _), (chosen, _) in zip(prepared.nearest(range(80), 10), expected, strict=True):
        assert sorted(ids) == sorted(3 * place for place in chosen)


def test_one_anchor_or_no_missing_token_is_enough():
    anchors, missing, source = random_rows()
    made = Omp().prepare(anchors[:1], missing).rows(source[:1])[:]
    assert np.allclose(made, source[:1], atol=1e-5)  # nothing but the mean
    made = Omp(center=False).prepare(anchors[:1], missing).rows(source[:1])[:]
    shares = (missing @ anchors[0]) / (anchors[0] @ anchors[0])
    assert np.allclose(made, shares[:, None] * source[:1], atol=1e-4)
    assert Omp().prepare(anchors, missing[:0]).rows(source)[:].shape == (0, 30)


def test_a_token_without_a_direction_gets_the_mean_of_all_anchors():
    anchors, missing, source = random_rows()
    anchors[9] = 0
    expected = Omp(4).prepare(anchors, missing).rows(source)[:]
    missing[3], missing[50] = 0, anchors.mean(axis=0, dtype=np.float64)
    for center, lost in ((True, [3, 50]), (False, [3])):
        prepared = Omp(4, center).prepare(anchors, missing)
        assert list(prepared.guarded["no direction in the helper"]) == lost
        assert np.allclose(prepared.rows(source)[:][lost], source.mean(axis=0), atol=1e-6)
    made = Omp(4).prepare(anchors, missing).rows(source)[:]
    others = np.setdiff1d(np.arange(80), [3, 50])
    assert np.allclose(made[others], expected[others], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_helper_rows_of_any_scale_give_the_same_rows(scale):
    anchors, missing, source = random_rows()
    expected = Omp(6).prepare(anchors, missing).rows(source)[:]
    tiny = anchors * np.float32(scale), missing * np.float32(scale)
    assert relative_error(Omp(6).prepare(*tiny).rows(source)[:], expected).max() < 1e-4


def test_batches_and_what_is_kept_change_nothing():
    anchors, missing, source = random_rows()
    expected = Omp(6).prepare(anchors, missing).rows(source)[:]
    with limited_to(32 * 4 * 24 * 9):
        made = Omp(6).prepare(anchors, missing).rows(source)[:]
    assert relative_error(made, expected).max() < 1e-5


@pytest.mark.parametrize("place", [0, 1])
def test_nan_never_becomes_a_row(place):
    rows = list(random_rows())
    rows[place][7, 3] = np.nan
    with pytest.raises(TransferError, match="NaN"):
        Omp().prepare(rows[0], rows[1])


@pytest.mark.parametrize("atoms", [0, -1, 2.5, True])
def test_atoms_out_of_range_are_refused(atoms):
    with pytest.raises(TransferError, match="atoms"):
        Omp(atoms)


BUDGETS = {"memory": 64 << 20, "file": 2_000_000, "none": 2_000_000}
"""Limits for 1,300 anchors, 40 wide, and where their Gram matrix is; "none": on a full disk."""


@pytest.fixture(params=BUDGETS)
def budget(request, monkeypatch):
    """A limit, in an environment where the Gram matrix is where the limit's name tells."""
    if request.param == "none":
        monkeypatch.setattr(pursuit, "free_scratch", lambda: 0)
    return request.param


def room_of(limit, anchors, steps=1 << 40, reserved=0):
    with limited_to(limit, reserved=reserved):
        return Room.of(*anchors.shape, steps)


def chosen_within(limit, anchors, wanted, own, atoms):
    """What `pursue` chooses: ids (n, atoms) and counts (n,)."""
    exact = Unit(anchors, None)
    with limited_to(limit):
        kept = Room.of(*anchors.shape, 1 << 40).kept(exact, atoms)
        return pursue(Unit(wanted, None)[:], own, kept, atoms)


def test_the_budgets_are_those_that_they_are_named_for(way, budget):
    anchors = random_rows(1300, 0, 40)[0]
    room = room_of(BUDGETS[budget], anchors)
    assert room.gram == (way == "gram" and budget != "none")
    assert room.in_memory == (way == "gram" and budget == "memory")
    assert not room_of(64 << 20, anchors, steps=1299).gram  # soon done without


@pytest.mark.parametrize("data", ["random", "spectrum", "clusters"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_plain_algorithm_chooses_the_same_within_any_budget(budget, data, shared):
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((1360, 40))
    if data != "random":
        rows *= np.arange(1, 41) ** -0.5
    if data == "clusters":
        rows = 0.5 * rows + rows[generator.integers(0, 60, len(rows))]
    rows = rows.astype(np.float32)
    anchors, wanted, own = rows[:1300], rows[1300:], np.full(60, NO_ANCHOR)
    if shared:
        own = generator.permutation(1300)[:60]
        wanted = anchors[own]
    ids, counts = chosen_within(BUDGETS[budget], anchors, wanted, own, 20)
    expected = reference(anchors, wanted, 20, False, own)
    for line, (chosen, _) in enumerate(expected):
        assert list(ids[line, : counts[line]]) == chosen


def test_most_of_it_is_read_from_the_gram_matrix(way, monkeypatch):
    """And not searched for after all."""
    known = []
    searched = pursuit._searched
    monkeypatch.setattr(
        pursuit, "_searched", lambda *given: known.append(given[-1]) or searched(*given)
    )
    anchors, wanted, _ = random_rows(1300, 60, 40)
    chosen_within(BUDGETS["file"], anchors, wanted, np.full(60, NO_ANCHOR), 12)
    open_ = np.concatenate([*known, np.empty(0, int)])
    assert len(open_) <= 3 if way == "gram" else (len(open_) == 60 and not open_.any())


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 700),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([1, 2, 40]),
    st.integers(0, 1 << 30),
)
def test_a_gram_matrix_changes_no_atom(count, width, atoms, different, seed):
    """Of few and of many anchors, of which some are equal, opposite or zero."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(-different, different + 1, (count + 5, width)).astype(np.float32)
    anchors, wanted = rows[:count], rows[count:]
    most = min(atoms, *anchors.shape)
    own = generator.integers(-1, count, 5) if count > 1 else np.full(5, NO_ANCHOR)
    exact = Unit(anchors, None)
    plain = Room(False, False, True).kept(exact, most)
    expected = pursue(Unit(wanted, None)[:], own, plain, most)
    for in_memory in (False, True):
        kept = Room(True, in_memory, in_memory).kept(exact, most)
        made = pursue(Unit(wanted, None)[:], own, kept, most)
        assert np.array_equal(made[0], expected[0]) and np.array_equal(made[1], expected[1])


@pytest.mark.parametrize("count", [1, 2, 90, 700])
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("limit", [64 << 20, 1 << 15])
def test_rows_of_a_gram_matrix_are_products(count, in_memory, limit, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    units = Unit(random_rows(count, 0, 8)[0], None)
    with limited_to(limit):
        gram = Gram(units, in_memory=in_memory)
    truth = units.exact(np.arange(count)) @ units.exact(np.arange(count)).T
    for anchor in range(count):
        row = np.empty(count, np.float32)
        gram.row(anchor, row)
        assert np.abs(row - truth[anchor]).max() < GRAM_ERROR + 1e-6
    assert not any(tmp_path.iterdir())  # a run that is killed leaves none


@pytest.mark.parametrize("way", ["gram"], indirect=True)
def test_a_gram_matrix_that_cannot_be_written_is_done_without(way, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    anchors, missing, source = random_rows(1300, 60, 40)
    expected = Omp(6).prepare(anchors, missing).rows(source)[:]
    monkeypatch.setattr(Gram, "_put", full)
    with limited_to(BUDGETS["file"]):
        made = Omp(6).prepare(anchors, missing).rows(source)[:]
    assert relative_error(made, expected).max() < 1e-5


@pytest.mark.parametrize("way", ["gram"], indirect=True)
def test_a_gram_matrix_for_which_the_disk_is_too_small_is_not_begun(way, monkeypatch):
    anchors = random_rows(1300, 0, 40)[0]
    blocks = 1651  # 2 * 1300 * 1300 bytes, twice
    free = [4096, 4096, 0, 0, blocks, 0, 0, 0, 0, 255]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(free))
    assert room_of(BUDGETS["file"], anchors).gram
    assert not room_of(BUDGETS["file"], anchors, reserved=4096).gram  # for the target
    free[4] = blocks - 1
    assert not room_of(BUDGETS["file"], anchors).gram


@pytest.mark.parametrize("way", ["products", "gram"], indirect=True)  # a GPU has its own memory
def test_narrow_rows_take_no_more_memory_than_was_said(way: str) -> None:
    """Cosines with all anchors are wider than the rows: they come in blocks of their own."""
    x, wanted, y = helper_and_source(20_000, 4_000, 16, 8)
    method = Omp(atoms=2)
    with limited_to(32 << 20, lean=True):
        told = method.working_bytes(20_000, 4_000, 16, 8)
        tracemalloc.start()
        method.prepare(x, wanted).rows(y)[0:10]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= told
