"""Neighbours through an index, against a comparison of all rows in float64 numpy."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from make import write_helper, write_source
from truths import cosines, knn_reference, relative_error

from clpstream.cli import cli
from clpstream.errors import TransferError
from clpstream.memory import limited_to
from clpstream.transfer import NO_ANCHOR, Knn, index
from clpstream.transfer.rows import Unit
from clpstream.transfer.search import Queries, nearest_of

ANCHORS, WANTED, WIDTH = 3000, 600, 256


@pytest.fixture(scope="module")
def rows():
    """Of two kinds of tokens, as language models have them: a spectrum that falls, and clusters."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((100, WIDTH))
    found = centers[generator.integers(0, 100, ANCHORS + WANTED)]
    found = found + generator.standard_normal(found.shape)
    found *= np.arange(1, WIDTH + 1) ** -0.7
    found = found.astype(np.float32)
    return found[:ANCHORS], found[ANCHORS:]


@pytest.fixture()
def large(monkeypatch):
    """What is large enough for "auto" to look for a projection, and to take it."""
    monkeypatch.setattr(index, "CHEAP", 0)
    monkeypatch.setattr(index, "_WORTH", 1)


def found_by(method, anchors, wanted, own=None):
    """(wanted, k) anchors, and the report of the search."""
    prepared = method.prepare(anchors, wanted, own)
    pairs = prepared.nearest(range(len(wanted)), method.neighbors)
    return np.array([np.sort(ids) for ids, _ in pairs]), prepared.search


def true_neighbors(anchors, wanted, k):
    return np.sort(np.argsort(-cosines(anchors, wanted, center=True), axis=1)[:, :k], axis=1)


def recall(found, truth):
    hits = [len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found, truth, strict=True)]
    return sum(hits) / truth.size


@pytest.mark.parametrize("name", ["exact", "auto"])
def test_a_small_vocabulary_is_searched_exactly(rows, name):
    found, report = found_by(Knn(index=name), *rows)
    assert np.array_equal(found, true_neighbors(*rows, 10))
    assert report is None


def test_auto_finds_what_it_promises_of_a_large_one(rows, large):
    found, report = found_by(Knn(), *rows)
    assert report.index.startswith("PCA ")
    assert report.candidates < ANCHORS / 4
    assert recall(found, true_neighbors(*rows, 10)) >= 0.99
    assert report.recall >= 0.99


def test_rows_that_lie_in_few_dimensions(rows, large):
    """Fewer than a projection has: the other directions are nothing, and bring nothing."""
    turn = np.random.default_rng(1).standard_normal((20, WIDTH))
    anchors, wanted = ((part[:, :20] @ turn).astype(np.float32) for part in rows)
    found, report = found_by(Knn(), anchors, wanted)
    assert report.index == "PCA 64"
    assert recall(found, true_neighbors(anchors, wanted, 10)) > 0.999


def test_auto_is_exact_where_a_projection_saves_little(rows, large, monkeypatch):
    monkeypatch.setattr(index, "_WORTH", 0.1)
    found, report = found_by(Knn(), *rows)
    assert report is None
    assert np.array_equal(found, true_neighbors(*rows, 10))


def test_auto_is_exact_where_no_projection_finds_enough(large):
    """Rows without structure have no directions that matter more than others."""
    generator = np.random.default_rng(0)
    anchors, wanted = generator.standard_normal((2, 2000, 64)).astype(np.float32)
    found, report = found_by(Knn(), anchors, wanted[:200])
    assert np.array_equal(found, true_neighbors(anchors, wanted[:200], 10))
    assert report is None


def test_the_nearest_of_some_candidates(rows):
    """Whatever the blocks that anchors are read in; own ones and places without one come last."""
    anchors, wanted = rows
    generator = np.random.default_rng(0)
    ids = generator.permuted(np.tile(np.arange(ANCHORS), (50, 1)), axis=1)[:, :40]
    ids[:, 7] = NO_ANCHOR
    own = np.where(generator.random(50) < 0.5, ids[:, 3], NO_ANCHOR)
    queries = Queries(Unit(wanted, None), np.arange(50), own)
    with limited_to(4 << 20):
        scores, found = nearest_of(queries, Unit(anchors, None), ids, 39)
    there = (ids != NO_ANCHOR) & (ids != own[:, None])
    expected = np.where(there, np.take_along_axis(cosines(anchors, wanted[:50], False), ids, 1), -9)
    order = np.argsort(-expected, axis=1)[:, :39]
    within = np.take_along_axis(there, order, axis=1)
    assert not within.all()
    assert np.array_equal(found[within], np.take_along_axis(ids, order, axis=1)[within])
    assert np.abs(scores - np.take_along_axis(expected, order, axis=1))[within].max() < 1e-6
    assert (scores[~within] == -np.inf).all()


def test_candidates_are_within_the_memory(rows):
    """Many for each row take more than the rows themselves."""
    anchors, wanted = rows[0], np.resize(rows[1], (20_000, WIDTH))
    with limited_to(64 << 20):
        tracemalloc.start()
        prepared = Knn(neighbors=100, index="IVF16,Flat").prepare(anchors, wanted)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert prepared.search.candidates >= 200
    kept = 20_000 * 100 * 8  # the result: an index and a weight of each neighbour
    assert peak < (64 << 20) + 2 * kept


@pytest.mark.parametrize("name", ["Flat", "IVF16,Flat", "IVF64,SQ8", "HNSW8", "IVF16,PQ4", "PQ2x4"])
def test_the_recall_of_an_index_is_that_of_all_rows(rows, name):
    found, report = found_by(Knn(index=name), *rows)
    assert report.index == name
    assert report.sample == WANTED  # so few that all of them are
    assert report.recall == pytest.approx(recall(found, true_neighbors(*rows, 10)), abs=1e-12)


def test_an_index_goes_through_more_lists_until_enough_is_found(rows):
    _, report = found_by(Knn(index="IVF64,Flat"), *rows)
    assert report.recall >= 0.99


def test_what_an_index_misses_is_the_only_difference(rows):
    """Weights are those of exact cosines, so that rows whose neighbours were all found are the
    same."""
    anchors, wanted = rows
    source = np.random.default_rng(1).standard_normal((ANCHORS, 12)).astype(np.float32)
    truth = true_neighbors(anchors, wanted, 10)
    method = Knn(index="IVF16,PQ4")
    found, report = found_by(method, anchors, wanted)
    assert report.recall < 1
    made = method.prepare(anchors, wanted).rows(source)[:]
    expected = knn_reference(anchors, wanted, source, 10, "softmax", 0.1, True)
    same = (found == truth).all(axis=1)
    assert 0 < same.sum() < WANTED
    assert relative_error(made[same], expected[same]).max() < 1e-4


@pytest.mark.parametrize("name", ["auto", "IVF16,Flat", "HNSW8", "PQ2x4"])
def test_a_shared_token_is_never_its_own_neighbour(rows, large, name):
    anchors, _ = rows
    own = np.arange(WANTED)
    found, _ = found_by(Knn(index=name), anchors, anchors[own], own)
    assert not (found == own[:, None]).any()


def test_every_row_gets_all_its_neighbours_where_lists_are_short(rows):
    """A list of an inverted index may hold fewer anchors than are asked for."""
    anchors, wanted = rows
    found, _ = found_by(Knn(neighbors=40, index="IVF512,Flat"), anchors, wanted)
    assert found.shape == (WANTED, 40)
    assert all(len(np.unique(line)) == 40 for line in found)
    assert found.min() > NO_ANCHOR


def test_a_projection_does_not_depend_on_the_memory(rows, large):
    found, report = found_by(Knn(), *rows)
    with limited_to(16 << 20):
        again, same = found_by(Knn(), *rows)
    assert recall(found, again) > 0.999  # sums of other blocks may differ in their last bits
    assert same.index == report.index


def test_an_index_is_the_same_each_time(rows):
    method = Knn(index="IVF16,PQ4")
    assert np.array_equal(found_by(method, *rows)[0], found_by(method, *rows)[0])


@pytest.mark.parametrize(
    "name, says",
    [
        ("nonsense", "'nonsense' for rows 256 wide.*leave index out"),
        ("IVF4096,Flat", "4,096 lists for 3,000 anchors; choose less"),
        ("Flat", "Flat.* takes 3 MB or more.*allow more memory"),
        ("", "index is ''"),
        ("IVF0,Flat", "size of zero in 'F0'"),
        ("HNSW0", "size of zero in 'W0'"),
        ("OPQ16,IVF64,PQ16", "training OPQ takes more memory than can be bounded"),
    ],
)
def test_an_index_that_can_not_be(rows, name, says):
    with limited_to(4 << 20), pytest.raises(TransferError, match=says):
        Knn(index=name).prepare(*rows)


def test_sparsemax_weighs_all_anchors():
    with pytest.raises(TransferError, match="sparsemax weighs all anchors"):
        Knn(weights="sparsemax", index="IVF16,Flat")


@pytest.fixture()
def models(tmp_path):
    write_source(tmp_path / "source", words=[f" word{n}" for n in range(800)])
    write_helper(tmp_path / "helper", [f" word{n}" for n in range(0, 1600, 2)], width=16)
    return [str(tmp_path / name) for name in ("source", "helper", "target")]


@pytest.mark.parametrize("name, warned", [("IVF8,Flat", False), ("PQ1x2", True)])
def test_the_report_tells_the_recall(models, name, warned):
    result = CliRunner().invoke(cli, ["convert", *models, "--method", "knn", "--index", name])
    assert result.exit_code == 0, result.output
    report = json.loads(Path(models[2], "clpstream.json").read_text())
    search = report["search"]["input"]
    assert search["index"] == name
    assert search["neighbors"] == 10
    assert f"{search['recall']:.1%} of its 10 nearest" in result.output
    assert (search["recall"] < 0.99) == warned
    assert any(warning.startswith(f"index {name}") for warning in report["warnings"]) == warned


def test_a_report_without_an_index_has_no_recall(models):
    result = CliRunner().invoke(cli, ["convert", *models, "--method", "knn", "--json", "-q"])
    assert json.loads(result.stdout)["search"] == {}
