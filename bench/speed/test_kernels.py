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
from embeddings import table_blocks

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
    helper = np.concatenate(list(table_blocks(concepts, HELPER_WIDTH, LATENTS, seed=0)))
    source = np.concatenate(list(table_blocks(concepts[:ANCHORS], WIDTH, LATENTS, seed=1)))
    return Tables(helper[:ANCHORS], helper[ANCHORS:], source)


@pytest.mark.parametrize("method", ["knn", "clp"])
def test_what_the_helper_tells(benchmark, tables: Tables, method: str) -> None:
    """The search for the nearest anchors; the paper's denominators."""
    benchmark(lambda: METHODS[method]().prepare(tables.anchors, tables.wanted))


def test_clp_rows(benchmark, tables: Tables) -> None:
    """The product in closed form, and the rows that it gives."""
    prepared = METHODS["clp"]().prepare(tables.anchors, tables.wanted)
    made = benchmark(lambda: prepared.rows(tables.source)[:WANTED])
    assert made.shape == (WANTED, WIDTH)


@pytest.mark.parametrize("method", ["procrustes", "ridge"])
def test_fit(benchmark, tables: Tables, method: str) -> None:
    """The fit of a rotation, or of a regression with a penalty that it chooses."""
    options = {"rounds": 0} if method == "procrustes" else {}

    def fit() -> np.ndarray:
        prepared = METHODS[method](**options).prepare(tables.anchors, tables.wanted[:1])
        return prepared.rows(tables.source)[:1]

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
