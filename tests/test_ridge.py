"""Ridge regression against numpy's float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
from truths import helper_and_source, relative_error

from clpstream import Ridge, TransferError
from clpstream.transfer.ridge import PENALTIES

pytestmark = pytest.mark.usefixtures("roomy_or_lean")


def related(anchors=300, noise=0.5, **sizes):
    """Helper rows, and source rows that are a linear map of them with noise."""
    known, missing, noises = helper_and_source(anchors=anchors, **sizes)
    generator = np.random.default_rng(9)
    slopes = generator.standard_normal((known.shape[1], noises.shape[1]))
    source = known @ slopes + noise * np.std(known @ slopes) * noises + 3
    return known, missing, source.astype(np.float32)


def parts(anchors, source):
    """X, Y, their means, t in float64."""
    x, y = anchors.astype(np.float64), source.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    return x, y, x_mean, y_mean, np.trace(x.T @ x) / x.shape[1]


def reference(anchors, missing, source, penalty):
    x, y, x_mean, y_mean, t = parts(anchors, source)
    slopes = np.linalg.solve(x.T @ x + penalty * t * np.eye(x.shape[1]), x.T @ y)
    return y_mean + (missing.astype(np.float64) - x_mean) @ slopes


def validation_error(anchors, source, penalty):
    """Generalised cross-validation, from the hat matrix itself."""
    x, y, _, _, t = parts(anchors, source)
    hat = x @ np.linalg.solve(x.T @ x + penalty * t * np.eye(x.shape[1]), x.T) + 1 / len(x)
    return len(x) * np.sum((y - hat @ y) ** 2) / (len(x) - np.trace(hat)) ** 2


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 30])
@pytest.mark.parametrize("anchors", [15, 300])
def test_rows_are_those_of_the_regression(anchors, penalty):
    known, missing, source = related(anchors)
    made = Ridge(penalty).prepare(known, missing).rows(source)[:]
    assert made.dtype == np.float32
    precision = 1e-5 if anchors > 24 else 1e-3  # the penalty alone keeps XᵀX from being singular
    assert relative_error(made, reference(known, missing, source, penalty)).max() < precision


@pytest.mark.parametrize("noise", [0.02, 0.5, 3, 100])
@pytest.mark.parametrize("anchors", [30, 60, 300])
def test_the_penalty_is_that_of_cross_validation(anchors, noise):
    known, missing, source = related(anchors, noise)
    best = min(PENALTIES, key=lambda penalty: validation_error(known, source, penalty))
    made = Ridge().prepare(known, missing).rows(source)[:]
    assert relative_error(made, reference(known, missing, source, best)).max() < 1e-5


def test_the_penalty_grows_with_the_noise():
    chosen = []
    for noise in (0.02, 3, 100):
        known, missing, source = related(60, noise)
        made = Ridge().prepare(known, missing).rows(source)[:]
        errors = [
            relative_error(made, reference(known, missing, source, penalty)).max()
            for penalty in PENALTIES
        ]
        chosen.append(int(np.argmin(errors)))
    assert chosen[0] < chosen[1] < chosen[2]


def test_each_tensor_has_its_own_penalty():
    known, missing, source = related(60, 0.02)
    noisy = related(60, 30)[2]
    prepared = Ridge().prepare(known, missing)
    for tensor in (source, noisy, source):
        alone = Ridge().prepare(known, missing).rows(tensor)[:]
        assert np.array_equal(prepared.rows(tensor)[:], alone)


def test_a_linear_map_is_found():
    known, missing, source = related(noise=0)
    exact = reference(known, missing, source, 1e-12)
    made = Ridge(1e-9).prepare(known, missing).rows(source)[:]
    assert relative_error(made, exact).max() < 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_helper_rows_of_any_scale_give_the_same_rows(scale):
    known, missing, source = related()
    expected = Ridge().prepare(known, missing).rows(source)[:]
    tiny = known * np.float32(scale), missing * np.float32(scale)
    assert relative_error(Ridge().prepare(*tiny).rows(source)[:], expected).max() < 1e-4


def test_a_large_mean_takes_nothing_from_the_rest():
    known, missing, source = related(shift=1e4)
    source += np.float32(1e3)
    made = Ridge(0.1).prepare(known, missing).rows(source)[:]
    expected = reference(known, missing, source, 0.1)
    center = source.mean(axis=0, dtype=np.float64)
    assert relative_error(made - center, expected - center).max() < 1e-3


def test_a_token_without_a_direction_gets_the_mean_of_the_other_anchors():
    known, missing, source = related()
    missing[3] = 0
    missing[50] = known.mean(axis=0, dtype=np.float64)
    own = np.full(len(missing), -1)
    own[50] = 7
    prepared = Ridge().prepare(known, missing, own)
    assert list(prepared.guarded["no direction in the helper"]) == [3, 50]
    made = prepared.rows(source)[:]
    assert np.allclose(made[3], source.mean(axis=0), atol=1e-4)
    assert np.allclose(made[50], np.delete(source, 7, axis=0).mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("anchors", [1, 5])
def test_anchors_that_are_all_alike_give_their_mean(anchors):
    known, missing, source = related(5)
    made = Ridge().prepare(known[[0] * anchors], missing).rows(source[:anchors])[:]
    assert np.allclose(made, source[:anchors].mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("place", [0, 1])
def test_nan_never_becomes_a_row(place):
    rows = list(related())
    rows[place][7, 3] = np.nan
    with pytest.raises(TransferError, match="NaN"):
        Ridge().prepare(rows[0], rows[1])


@pytest.mark.parametrize("penalty", [0, -1, float("nan"), float("inf")])
def test_a_penalty_out_of_range_is_refused(penalty):
    with pytest.raises(TransferError, match="penalty"):
        Ridge(penalty)
