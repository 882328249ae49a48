"""Which of the helper's tables a target's row follows, and helpers that are a tokenizer only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from make import (
    SOURCE_WORDS,
    TARGET_WORDS,
    random_rows,
    read_tensors,
    write_checkpoint,
    write_source,
    write_tokenizer,
)
from plain import convert
from truths import cosines, knn_reference

import clpstream
from clpstream import ClpstreamError
from clpstream.cli import cli

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SOURCE = {word: token for token, word in enumerate(["</s>", *SOURCE_WORDS])}
TARGET = {word: token for token, word in enumerate(["</s>", *TARGET_WORDS])}
SHARED = [word for word in TARGET if word in SOURCE]
MISSING = [word for word in TARGET if word not in SOURCE]
WIDTH = 8


def write_helper(place: Path, shards: int = 3, **tensors: np.ndarray) -> None:
    """A helper with a body between its input embeddings and its head, if it has one."""
    rows = len(write_tokenizer(place / "helper", TARGET_WORDS))
    head = {} if "head" in tensors else {"head": random_rows(rows, WIDTH, 6)}
    made = {
        EMBEDDINGS: random_rows(rows, WIDTH, 5),
        "norm.weight": np.ones(WIDTH, "f4"),
        **({HEAD: table} if (table := {**head, **tensors}["head"]) is not None else {}),
    }
    write_checkpoint(place / "helper", made, {"model_type": "llama", "vocab_size": rows}, shards)


def run(place: Path, **arguments: Any) -> tuple[Any, dict[str, np.ndarray]]:
    result = convert(place / "source", place / "helper", place / "target", **arguments)
    return result.report, read_tensors(place / "target")


def follows(place: Path, made: np.ndarray, name: str, table: str, method: str = "knn") -> bool:
    """Whether the missing rows are those of the formula, from one of the helper's tables."""
    helper = read_tensors(place / "helper")[table]
    source = read_tensors(place / "source")[name][[SOURCE[word] for word in SHARED]]
    anchors, missing = ([TARGET[word] for word in words] for words in (SHARED, MISSING))
    if method == "knn":
        expected = knn_reference(helper[anchors], helper[missing], source, 10, "softmax", 0.1, True)
    else:
        weights = cosines(helper[anchors], helper[missing], center=False)
        expected = weights @ source.astype("f8") / weights.sum(axis=1, keepdims=True)
    return np.allclose(made[missing], expected, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("method", ["knn", "clp"])
def test_a_head_follows_the_helper_s_own(tmp_path: Path, method: str, shards: int) -> None:
    write_source(tmp_path / "source")
    write_helper(tmp_path, shards)
    report, made = run(tmp_path, method=method)
    assert follows(tmp_path, made[HEAD], HEAD, HEAD, method)
    assert follows(tmp_path, made[EMBEDDINGS], EMBEDDINGS, EMBEDDINGS, method)
    assert not follows(tmp_path, made[HEAD], HEAD, EMBEDDINGS, method)
    assert (report.helper.shards, report.helper.of_shards) == (min(shards, 2), shards)


def test_a_shard_between_the_helper_s_tables_need_not_be_there(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    write_helper(tmp_path)
    (tmp_path / "helper" / "model-00002-of-00003.safetensors").unlink()
    _, made = run(tmp_path)
    assert follows(tmp_path, made[HEAD], HEAD, HEAD)
    (tmp_path / "helper" / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(ClpstreamError, match="00003-of-00003"):
        run(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("head", "warned"),
    [
        pytest.param(None, None, id="tied"),
        pytest.param(random_rows(len(TARGET), WIDTH, 5), None, id="the same again"),
        pytest.param(np.ones((len(TARGET), WIDTH), np.uint8), "U8", id="quantised"),
        pytest.param(random_rows(len(TARGET), WIDTH + 1, 6), "F32", id="wider"),
    ],
)
def test_without_a_head_to_read_both_follow_the_input_embeddings(
    tmp_path: Path, head: np.ndarray | None, warned: str | None
) -> None:
    write_source(tmp_path / "source")
    write_helper(tmp_path, 2 if head is None else 3, head=head)
    report, made = run(tmp_path)
    assert follows(tmp_path, made[HEAD], HEAD, EMBEDDINGS)
    assert follows(tmp_path, made[EMBEDDINGS], EMBEDDINGS, EMBEDDINGS)
    unused = [text for text in report.warnings if "output head is not used" in text]
    assert len(unused) == (warned is not None)
    assert all(f"'{HEAD}': {warned} [" in text for text in unused)


@pytest.mark.parametrize(("method", "table"), [("knn", HEAD), ("clp", EMBEDDINGS)])
def test_a_table_for_both_follows_the_helper_s_head(
    tmp_path: Path, method: str, table: str
) -> None:
    """But in clp, as in the paper, its input embeddings."""
    write_source(tmp_path / "source", untied=False)
    write_helper(tmp_path)
    report, made = run(tmp_path, method=method)
    assert report.tied
    assert follows(tmp_path, made[EMBEDDINGS], EMBEDDINGS, table, method)


def test_the_same_table_is_followed_by_a_method_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "source", untied=False)
    write_helper(tmp_path)
    monkeypatch.setattr("clpstream.choosing.choose", lambda *given: {"clp": 1.0})
    _, made = run(tmp_path, method="auto")
    assert follows(tmp_path, made[EMBEDDINGS], EMBEDDINGS, EMBEDDINGS, "clp")


@pytest.mark.parametrize("method", ["clp", "knn", "omp", "align", "ridge"])
def test_what_is_odd_about_the_helper_s_head_is_said_too(tmp_path: Path, method: str) -> None:
    write_source(tmp_path / "source")
    head = random_rows(len(TARGET), WIDTH, 6)
    lost = [TARGET[word] for word in MISSING[:2]]
    head[lost] = 0
    write_helper(tmp_path, head=head)
    report, _ = run(tmp_path, method=method, shared="copy")
    assert report.counts.guarded["no direction in the helper"] == 2
    (said,) = (w for w in report.warnings if "near zero" in w)
    assert said.startswith(f"2 of the helper's rows in {HEAD} are near zero")


def test_nan_in_the_helper_s_head_names_the_token(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    head = random_rows(len(TARGET), WIDTH, 6)
    head[TARGET[" der"]] = np.nan
    write_helper(tmp_path, head=head)
    with pytest.raises(ClpstreamError, match=r"lm_head.*\(token ' der'\) has NaN or Inf"):
        run(tmp_path)


# --- a helper that is a tokenizer only

PIECES = {"gern": "gern", "xylä": "xylä", "tee": "tee"}
"""Words that only the helper's tokenizer has; the source splits them into letters."""
WORDS = [*TARGET_WORDS[:-5], *PIECES]
IDS = {word: token for token, word in enumerate(["</s>", *WORDS])}
BOTH = [word for word in IDS if word in SOURCE]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A source, and a tokenizer in place of a helper."""
    write_source(tmp_path / "source")
    write_tokenizer(tmp_path / "helper", WORDS)
    return tmp_path


@pytest.mark.parametrize("pieces", [None, "first", "mean", "ends"])
def test_subword_is_made_from_pieces(bare: Path, pieces: Any) -> None:
    """By default the mean; in heads half as much of each piece after the first."""
    arguments = {} if pieces is None else {"pieces": pieces}
    report, made = run(bare, method="subword", **arguments)
    source = read_tensors(bare / "source")
    for name in (EMBEDDINGS, HEAD):
        assert (
            made[name][[IDS[w] for w in BOTH]].tobytes()
            == source[name][[SOURCE[w] for w in BOTH]].tobytes()
        )
        for word, letters in PIECES.items():
            rows = source[name].astype("f8")[[SOURCE[letter] for letter in letters]]
            weights = np.ones(len(rows))
            if name == HEAD and pieces in (None, "first"):
                weights = 0.5 ** np.arange(len(rows))
            if pieces == "ends":
                weights = np.eye(len(rows))[0 if name == HEAD else -1]
            expected = weights @ rows / weights.sum()
            assert np.allclose(made[name][IDS[word]], expected, atol=1e-6)
    assert report.helper is None
    assert report.options["pieces"] == (pieces or "first")
    assert (report.counts.split, report.counts.missing) == (len(PIECES), 0)


@pytest.mark.parametrize("pieces", [None, "first", "mean", "ends"])
def test_a_head_that_is_a_copy_of_the_embeddings_stays_one(bare: Path, pieces: Any) -> None:
    tensors = read_tensors(bare / "source")
    tensors[HEAD] = tensors[EMBEDDINGS]
    config = {"vocab_size": len(SOURCE), "tie_word_embeddings": True}
    write_checkpoint(bare / "source", tensors, config)
    arguments = {} if pieces is None else {"pieces": pieces}
    report, made = run(bare, method="subword", **arguments)
    assert report.tied
    assert made[HEAD].tobytes() == made[EMBEDDINGS].tobytes()


def test_mean_needs_a_tokenizer_only(bare: Path) -> None:
    report, made = run(bare, method="mean")
    source = read_tensors(bare / "source")
    for name in (EMBEDDINGS, HEAD):
        mean = source[name].astype("f8")[[SOURCE[word] for word in BOTH]].mean(axis=0)
        for word in PIECES:
            assert np.allclose(made[name][IDS[word]], mean, atol=1e-6)
    assert report.helper is None
    assert report.counts.missing == len(PIECES)


def test_random_needs_a_tokenizer_only(bare: Path) -> None:
    report, made = run(bare, method="random")
    again = run(bare, method=clpstream.Random(seed=0), overwrite=True)[1]
    other = run(bare, method=clpstream.Random(seed=1), overwrite=True)[1]
    assert report.helper is None
    source = read_tensors(bare / "source")[EMBEDDINGS][[SOURCE[word] for word in BOTH]]
    for word, token in IDS.items():
        assert made[EMBEDDINGS][token].tobytes() == again[EMBEDDINGS][token].tobytes()
        assert (made[EMBEDDINGS][token] == other[EMBEDDINGS][token]).all() == (word in BOTH)
    drawn = (made[EMBEDDINGS][[IDS[word] for word in PIECES]] - source.mean(axis=0)) / source.std(0)
    assert abs(drawn.mean()) < 0.6  # of 48 draws from a standard normal distribution
    assert 0.6 < drawn.std() < 1.4


@pytest.mark.parametrize("method", ["subword", "mean", "random"])
def test_without_a_helper_nothing_can_be_mapped(bare: Path, method: str) -> None:
    with pytest.raises(ClpstreamError, match=f"{method} reads no helper.*copy"):
        run(bare, method=method, shared="map")
    report, _ = run(bare, method=method, shared="auto")
    assert (report.sharing, report.counts.remade) == (None, 0)


@pytest.mark.parametrize("method", ["align", "procrustes", "ridge", "knn", "omp", "clp"])
def test_a_method_that_needs_the_helper_s_weights_says_so(bare: Path, method: str) -> None:
    with pytest.raises(ClpstreamError, match=r"helper: no .*model\.safetensors"):
        run(bare, method=method)
    assert not (bare / "target").exists()


def test_the_summary_says_that_no_helper_was_read(bare: Path) -> None:
    places = [str(bare / name) for name in ("source", "helper", "target")]
    done = CliRunner().invoke(cli, ["convert", *places, "--method", "subword"])
    assert done.exit_code == 0, done.output
    assert "helper    not read by this method" in done.stdout
    assert f"split     {len(PIECES)}" in done.stdout


def test_weights_beside_the_tokenizer_are_not_opened(bare: Path) -> None:
    (bare / "helper" / "model.safetensors").write_bytes(b"damaged")
    assert run(bare, method="subword")[0].helper is None
