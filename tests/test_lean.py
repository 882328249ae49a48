"""What is made in less memory, where there is little: the same as with enough, and less of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make import write_helper, write_source

from clpstream import convert
from clpstream.memory import DEFAULT, LEAST, lean, limited_to
from clpstream.transfer import jacobi
from clpstream.transfer.linear import factors, inverse, polar


def graded(rows: int, columns: int, rank: int, decades: float, seed: int) -> np.ndarray:
    """A matrix whose singular values fall from 1 by some powers of ten: float32."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((rows, rank)))[0]
    right = np.linalg.qr(generator.standard_normal((columns, rank)))[0]
    return (left * np.logspace(0, -decades, rank) @ right.T).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 300),
    more=st.integers(0, 60),
    decades=st.floats(0, 4),
    seed=st.integers(0, 99),
)
def test_rows_are_turned_until_they_are_orthogonal(rows, more, decades, seed):
    """Of one block, two and three; the lengths are the singular values."""
    matrix = graded(rows, rows + more, rows, decades, seed)
    before = matrix.copy()
    turn, turned, lengths = jacobi.orthogonal(matrix, 1e-6)
    assert np.array_equal(matrix, before)
    assert np.allclose(turn @ turn.T, np.eye(rows), atol=1e-5)
    assert np.allclose(turn @ matrix, turned, atol=2e-6)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    assert np.allclose(lengths, expected, atol=1e-6)
    unit = turned / lengths[:, None]
    assert np.abs(unit @ unit.T - np.eye(rows)).max() < 1e-4


@pytest.mark.parametrize("shape", [(280, 300), (300, 280)])
@pytest.mark.parametrize("rank", [40, 280])
def test_factors_and_rotation_are_those_of_numpy(shape, rank):
    matrix = graded(*shape, rank, 2, 0)
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    with limited_to(LEAST, lean=True):
        found, turned = factors(matrix), polar(matrix)
    assert len(found.values) == rank
    assert np.allclose(found.values, values[:rank], rtol=1e-4)
    assert np.allclose(found.left * found.values @ found.right.T, matrix, atol=1e-6)
    assert np.abs(turned - left[:, :rank] @ right[:rank]).max() < 1e-4


def test_nothing_at_all_has_no_directions():
    zero = np.zeros((200, 210), np.float32)
    with limited_to(LEAST, lean=True):
        assert len(factors(zero).values) == 0
        assert not polar(zero).any()


@pytest.mark.parametrize("size", [1, 255, 512, 1027])
def test_the_inverse_by_halves_is_the_inverse(size):
    rows = np.random.default_rng(size).standard_normal((2 * size, size))
    matrix = rows.T @ rows / size + np.eye(size)
    with limited_to(LEAST, lean=True):
        found = inverse(matrix.astype(np.float32))
    assert found.dtype == np.float32
    assert np.abs(found - np.linalg.inv(matrix)).max() < 1e-5


@pytest.mark.parametrize("method", ["align", "ridge"])
def test_a_conversion_in_less_memory_gives_the_same_rows(tmp_path, method, monkeypatch):
    """Widths of which no decomposition by LAPACK fits; the target is read by the safetensors
    library."""
    from safetensors.numpy import load_file

    words = [f" word{n}" for n in range(3400)]
    others = [f" {'word' if n % 8 < 5 else 'other'}{n}" for n in range(3400)]
    write_source(tmp_path / "source", "gpt2", words=words, width=1024, dtype="F32")
    write_helper(tmp_path / "helper", others, width=1000)
    asked = []

    def watched(rows, resolution):
        asked.append(lean())
        return found(rows, resolution)

    found = jacobi.orthogonal
    monkeypatch.setattr(jacobi, "orthogonal", watched)
    made = {}
    for name, limit in (("roomy", None), ("lean", 50 << 20)):
        asked.clear()
        convert(
            *(tmp_path / part for part in ("source", "helper", name)),
            method=method,
            max_memory=limit,
        )
        assert bool(asked) == (name == "lean")
        report = json.loads((tmp_path / name / "clpstream.json").read_text("utf-8"))
        assert report["options"]["shared"] == "auto" and report["sharing"]
        made[name] = load_file(tmp_path / name / "model.safetensors")
    for name, rows in made["roomy"].items():
        assert np.abs(made["lean"][name] - rows).max() < 1e-3 * np.abs(rows).max()


def test_blocks_don_t_depend_on_what_was_measured(pair, monkeypatch):
    """The memory that is resident differs a little from run to run; a sum that is made in other
    blocks is rounded in another way."""
    limits = []

    def noted(limit, *, lean, reserved):
        limits.append((limit, lean))
        return limited_to(limit, lean=lean, reserved=reserved)

    monkeypatch.setattr("clpstream.memory.limited_to", noted)
    for extra in (0, 4096, 300_000):
        resident = iter([50_000_000, 60_000_000 + extra])
        monkeypatch.setattr("clpstream.conversion.resident_memory", lambda at=resident: next(at))
        convert(*pair, overwrite=True)
    assert len(set(limits)) == 1
    assert limits[0] == (DEFAULT, False)
