"""Seconds of the kernels on their own, through the interfaces that conversions use.

    pip install pytest-benchmark
    python -m pytest bench/speed/test_kernels.py

`--benchmark-save NAME` before a change and `--benchmark-compare` after it tell what it did.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import vocabularies
from embeddings import table

from clpstream.checkpoint import TensorRows, header_bytes, read_shard
from clpstream.transfer import METHODS
from clpstream.vocabulary import match, read_vocabulary

pytest.importorskip("pytest_benchmark")

ANCHORS, WANTED, HELPER_WIDTH, WIDTH, LATENTS = 4000, 8000, 512, 1024, 128


class Tables(NamedTuple):
    """The helper's rows of the anchors and of the wanted tokens, the source's of the anchors."""

    anchors: np.ndarray
    wanted: np.ndarray
    source: np.ndarray


@pytest.fixture(scope="module")
def tables() -> Tables:
    concepts = np.arange(ANCHORS + WANTED)
    helper = table(concepts, HELPER_WIDTH, LATENTS, seed=0)
    source = table(concepts[:ANCHORS], WIDTH, LATENTS, seed=1)
    return Tables(helper[:ANCHORS], helper[ANCHORS:], source)


@pytest.mark.parametrize("method", ["knn", "clp", "omp"])
def test_what_the_helper_tells(benchmark, tables: Tables, method: str) -> None:
    """The search for the nearest anchors; the paper's denominators; the pursuit of some rows."""
    options, count = ({"atoms": 16}, 500) if method == "omp" else ({}, WANTED)
    benchmark(lambda: METHODS[method](**options).prepare(tables.anchors, tables.wanted[:count]))


def test_gathered_rows(benchmark, tables: Tables) -> None:
    """Ten rows of the source for each wanted one, gathered and added up by their weights."""
    prepared = METHODS["knn"]().prepare(tables.anchors, tables.wanted)
    made = benchmark(lambda: prepared.rows(tables.source)[:WANTED])
    assert made.shape == (WANTED, WIDTH)


def test_clp_rows(benchmark, tables: Tables) -> None:
    """The product in closed form, and the rows that it gives."""
    prepared = METHODS["clp"]().prepare(tables.anchors, tables.wanted)
    made = benchmark(lambda: prepared.rows(tables.source)[:WANTED])
    assert made.shape == (WANTED, WIDTH)


@pytest.mark.parametrize("method", ["procrustes", "ridge", "align"])
def test_fit(benchmark, tables: Tables, method: str) -> None:
    """The fit of a rotation, of a regression with a penalty that it chooses, and of a map to pairs
    that are found three times among 3,000 of each side."""
    options = {"rounds": 0} if method == "procrustes" else {}
    wanted = tables.wanted if method == "align" else tables.wanted[:1]

    def fit() -> np.ndarray:
        prepared = METHODS[method](**options).prepare(tables.anchors, wanted)
        return prepared.rows(tables.source, tables.source)[:1]

    assert benchmark(fit).shape == (1, WIDTH)


def test_row_encoding(benchmark, tables: Tables, tmp_path: Path) -> None:
    """float32 to bfloat16, rounded to the nearest."""
    described = [("rows", "BF16", (1, WIDTH), 2 * WIDTH)]
    path = tmp_path / "model.safetensors"
    path.write_bytes(header_bytes(described, None) + bytes(2 * WIDTH))
    rows = TensorRows(read_shard(path).tensors[0])
    assert benchmark(rows.encode, tables.source).nbytes == tables.source.nbytes // 2


def test_overlap(benchmark, tmp_path: Path) -> None:
    """What two vocabularies share, once they are read."""
    directories = tmp_path / "source", tmp_path / "helper"
    for directory in directories:
        directory.mkdir()
    vocabularies.generate(*directories, (50_000, 30_000), overlap=0.3)
    source, helper = map(read_vocabulary, directories)
    assert len(benchmark(match, source, helper).shared) > 8_000
