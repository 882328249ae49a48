"""Rows that are odd, in the helper or in the target, are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Pair
from make import SOURCE_WORDS, TARGET_WORDS, random_rows, read_tensors, write_source
from make import write_checkpoint as save
from make import write_tokenizer as tokenizer
from plain import convert

TABLE, EMBEDDINGS = "wte.weight", "model.embed_tokens.weight"
NEW = [f" neu{number}" for number in range(20)]
WORDS = [*TARGET_WORDS[:-5], " and", " in", "ing", *NEW]
IDS = {word: token for token, word in enumerate(["</s>", *WORDS])}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_source(tmp_path / "source")
    tokenizer(tmp_path / "helper", WORDS)
    plant(tmp_path, {})
    return tmp_path


def plant(place: Path, rows: dict[str, Any]) -> None:
    table = random_rows(len(IDS), 8, 5)
    for word, row in rows.items():
        table[IDS[word]] = row
    save(place / "helper", {TABLE: table}, {"model_type": "gpt2"})


def warnings(place: Path, about: str, **arguments: Any) -> list[str]:
    report = convert(
        place / "source", place / "helper", place / "target", overwrite=True, **arguments
    ).report
    return [warning for warning in report.warnings if about in warning]


def named(warning: str, words: list[str]) -> bool:
    """Whether exactly these of the new words are in it."""
    return [word for word in NEW if f"'{word}'" in warning] == words


@pytest.mark.parametrize("method", ["knn", "align"])
def test_rows_that_were_never_trained_are_named(place: Path, method: str) -> None:
    assert warnings(place, "was not trained on", method=method) == []
    row = random_rows(3, 8, 9)
    same = {" neu11": row[0], " neu4": row[0], " neu17": row[0] * 1.00001}
    plant(place, {" neu3": 0, " neu12": row[1] * 1e-4, **same})
    zero, alike = warnings(place, "was not trained on", method=method)
    assert zero.startswith("2 of the helper's rows are near zero")
    assert named(zero, [" neu3", " neu12"])
    assert alike.startswith("3 of the helper's rows are near identical")
    assert named(alike, [" neu4", " neu11", " neu17"])


def test_rows_of_copied_tokens_do_not_matter(place: Path) -> None:
    plant(place, {"a": 0, "b": 1, "c": 1})
    assert warnings(place, "was not trained on") == []


@pytest.mark.parametrize("method", ["procrustes", "align", "ridge"])
def test_a_row_that_is_longer_than_any_shared_one_is_named(place: Path, method: str) -> None:
    plant(place, {" neu7": 1000 * random_rows(1, 8, 9)[0]})
    found = warnings(place, "longer than that of any shared token", method=method)
    assert {warning.split(":")[0] for warning in found} == {EMBEDDINGS, "lm_head.weight"}
    made, source = read_tensors(place / "target"), read_tensors(place / "source")
    shared = [1 + SOURCE_WORDS.index(word) for word in WORDS if word in SOURCE_WORDS]
    for warning in found:
        name = warning.split(":")[0]
        lengths = np.linalg.norm(made[name][[IDS[word] for word in NEW]], axis=1)
        longest = np.linalg.norm(source[name][[0, *shared]], axis=1).max()
        assert f"{(lengths > longest).sum()} new rows" in warning
        assert f", up to {lengths.max() / longest:.2f} times as long: " in warning
        assert f"as long: '{NEW[lengths.argmax()]}'" in warning
        assert lengths.argmax() == 7


def test_an_average_is_never_longer(place: Path) -> None:
    plant(place, {" neu7": 1000 * random_rows(1, 8, 9)[0]})
    assert warnings(place, "longer than") == []


def test_rounding_is_no_length(place: Path) -> None:
    tensors = read_tensors(place / "source")
    tensors["lm_head.bias"] = np.full(len(tensors["lm_head.weight"]), -2.1, np.float32)
    save(place / "source", tensors, {"vocab_size": len(tensors["lm_head.weight"])})
    for method in ("knn", "omp", "ridge"):
        assert warnings(place, "lm_head.bias: ", method=method) == []


def test_too_few_anchors_are_said(pair: Pair) -> None:
    """Of methods that need one for each direction."""
    tokenizer(pair.helper, [*"abc", *NEW])
    save(pair.helper, {TABLE: random_rows(24, 8, 5)}, {"model_type": "gpt2"})
    place = pair.source.parent
    (found,) = warnings(place, "too few anchors", method="procrustes")
    assert "4 shared tokens, of which procrustes wants 8 or more" in found
    assert warnings(place, "too few anchors", method="mean") == []


@pytest.mark.parametrize("method", ["knn", "align"])
def test_a_helper_that_was_hardly_trained_is_told(place: Path, method: str) -> None:
    words = [*WORDS, *(f" wort{number}" for number in range(600))]
    tokenizer(place / "helper", words)
    random = random_rows(len(words) + 1, 32, 5)
    used_alike = random[np.arange(len(random)) // 4 * 4] + 0.1 * random
    for table, expected in ((random, 1), (used_alike, 0)):
        save(place / "helper", {TABLE: table}, {"model_type": "gpt2"})
        found = warnings(place, "the helper looks hardly trained", method=method)
        assert len(found) == expected
