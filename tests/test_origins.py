"""Where each row of the target comes from, held against the formulas in float64.

Of the words here a byte-level tokenizer without merges splits every text into single characters,
so that a token's pieces are its letters.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import (
    SOURCE_WORDS,
    TARGET_WORDS,
    byte_level,
    random_rows,
    read_json,
    read_tensors,
    write_checkpoint,
    write_helper,
    write_json,
    write_source,
    write_tokenizer,
)
from plain import convert

import clpstream
from clpstream import CheckpointError, ClpstreamError, TransferError, VocabularyError
from clpstream.transfer.fitted import PreparedMap

EMBEDDINGS, HEAD, TABLE = "model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight"
SOURCE = {word: token for token, word in enumerate(["</s>", *SOURCE_WORDS])}
HELPER = {word: token for token, word in enumerate(["</s>", *TARGET_WORDS])}
BOTH = [word for word in HELPER if word in SOURCE]
NEW_WORDS = [" Haus", "cab", " and", "z", "bee", "a", " der", "b", "☃", " the"]
"""A target vocabulary: words of the source, of the helper alone, and of neither; one can't be
split."""
WIDTH = 16


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a source of three zero rows of padding, a helper and a tokenizer."""
    write_source(tmp_path / "source", padding=3)
    change(
        tmp_path / "source", lambda tensors: [zero_padding(tensors[n]) for n in (EMBEDDINGS, HEAD)]
    )
    write_helper(tmp_path / "helper")
    write_tokenizer(
        tmp_path / "new", NEW_WORDS, special={"bos": "<s>", "eos": "</s>", "pad": "pad"}
    )
    return tmp_path


def zero_padding(rows: np.ndarray) -> None:
    rows[len(SOURCE) :] = 0


def change(directory: Path, edit: Any, **config: Any) -> None:
    """Edit a checkpoint's tensors in place; `config` is added to config.json."""
    tensors = read_tensors(directory)
    edit(tensors)
    write_checkpoint(directory, tensors, read_json(directory / "config.json") | config)


def run(place: Path, output: str = "target", **arguments: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Convert; the report and the target's tensors."""
    result = convert(place / "source", place / "helper", place / output, **arguments)
    return result.report, read_tensors(place / output)


def command(place: Path, *arguments: str, **variables: str) -> Any:
    """The command line, in `place`."""
    options = ["source", "helper", "target", "--method", "knn", "--shared", "copy"]
    return subprocess.run(
        [sys.executable, "-m", "clpstream", "convert", *options, *arguments],
        cwd=place,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(clpstream.__file__).parents[1]), **variables},
        check=False,
    )


def rows_of(place: Path, name: str) -> np.ndarray:
    return read_tensors(place / "source")[name]


def nearest(place: Path, word: str) -> str:
    """The shared token whose row in the helper is closest by cosine, less their mean."""
    helper = read_tensors(place / "helper")[TABLE].astype(np.float64)
    at = helper[[HELPER[other] for other in BOTH]]
    query, found = helper[HELPER[word]] - at.mean(axis=0), at - at.mean(axis=0)
    return BOTH[int(np.argmax(found @ query / np.linalg.norm(found, axis=1)))]


def combined(place: Path, name: str, words: list[str], anchors: list[str] = BOTH) -> np.ndarray:
    """Rows by the formula of knn (10 neighbours, softmax at 0.1, centred), in float64."""
    helper = read_tensors(place / "helper")[TABLE].astype(np.float64)
    source = rows_of(place, name).astype(np.float64)[[SOURCE[word] for word in anchors]]
    at = helper[[HELPER[word] for word in anchors]]
    mean = at.mean(axis=0)
    at, wanted = at - mean, helper[[HELPER[word] for word in words]] - mean
    scores = (wanted / np.linalg.norm(wanted, axis=1)[:, None]) @ (
        at / np.linalg.norm(at, axis=1)[:, None]
    ).T
    weights = np.exp(scores / 0.1) * (scores >= np.sort(scores, axis=1)[:, -10][:, None])
    return weights / weights.sum(axis=1, keepdims=True) @ source


def split(place: Path, name: str, pieces: list[str], how: str = "mean") -> np.ndarray:
    rows = rows_of(place, name).astype(np.float64)[[SOURCE[piece] for piece in pieces]]
    return rows.mean(axis=0) if how == "mean" else rows[0 if name == HEAD else -1]


def anchors_mean(place: Path, name: str, anchors: list[str] = BOTH) -> np.ndarray:
    rows = rows_of(place, name)[[SOURCE[word] for word in anchors]]
    return rows.astype(np.float64).mean(axis=0)


def close(made: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(made, expected, rtol=1e-5, atol=1e-6)


# --- --tokenizer, --pieces


@pytest.mark.parametrize("how", ["mean", "ends"])
def test_each_row_of_another_tokenizer_has_its_origin(place: Path, how: str) -> None:
    report, after = run(place, tokenizer=place / "new", pieces=how)
    ids = {word: token for token, word in enumerate(["<s>", "</s>", "pad", *NEW_WORDS])}
    for name in (EMBEDDINGS, HEAD):
        before = rows_of(place, name)
        assert after[name].shape == (len(ids), WIDTH)
        for word in ("</s>", " and", "z", "a", "b", " the"):
            assert after[name][ids[word]].tobytes() == before[SOURCE[word]].tobytes()
        expected = combined(place, name, [" Haus", " der"])
        assert close(after[name][[ids[" Haus"], ids[" der"]]], expected)
        for word in ("cab", "bee", "pad"):
            assert close(after[name][ids[word]], split(place, name, list(word), how))
        for word in ("☃", "<s>"):
            assert close(after[name][ids[word]], anchors_mean(place, name))
    counts = report.counts
    assert (counts.shared, counts.missing, counts.split, counts.unknown) == (6, 2, 3, 2)
    assert counts.target == len(ids) == report.tokenizer.tokens
    assert counts.not_carried == len(SOURCE) - 6
    assert counts.anchors == len(BOTH)
    assert counts.unused == 0
    unknown = next(warning for warning in report.warnings if "neither vocabulary" in warning)
    assert "'☃'" in unknown
    assert "<s>" in unknown


def test_a_pruned_vocabulary_keeps_its_rows_and_makes_none(place: Path) -> None:
    kept = ["k", " house", "ä", "ing"]
    write_tokenizer(place / "pruned", kept)
    report, after = run(place, tokenizer=place / "pruned")
    for name in (EMBEDDINGS, HEAD):
        assert np.array_equal(after[name], rows_of(place, name)[[0, *(SOURCE[w] for w in kept)]])
    assert (report.counts.shared, report.counts.missing, report.counts.split) == (5, 0, 0)
    assert read_json(place / "target" / "config.json")["vocab_size"] == 5


def test_the_helpers_tokenizer_given_by_name_changes_nothing(place: Path) -> None:
    mapped = {" und": " and", "ung": "ing", "ä": "a"}
    _, without = run(place, map_tokens=mapped)
    _, named = run(place, "named", tokenizer=place / "helper", map_tokens=mapped)
    assert all(np.array_equal(without[name], named[name]) for name in without)


def test_a_near_match_is_copied_but_made_from_nothing(place: Path) -> None:
    """' HAUS' is near the helper's ' Haus', and 'THE' near the source's ' the'."""
    write_tokenizer(place / "new", ["THE", " HAUS", "HAUS"])
    report, after = run(place, tokenizer=place / "new", match="fuzzy")
    assert np.array_equal(after[HEAD][1], rows_of(place, HEAD)[SOURCE[" the"]])
    assert (report.counts.missing, report.counts.unknown) == (0, 2)
    assert report.counts.rules == {"role": 1, "fuzzy": 1}


def test_two_runs_give_the_same_bytes(place: Path) -> None:
    given = {"z": "a", "bee": "zoo", " Haus": " house"}
    for output in ("one", "two"):
        pairs = given if output == "one" else dict(reversed(given.items()))
        run(place, output, tokenizer=place / "new", map_tokens=pairs, pad_to_multiple_of=8)
    one, two = (
        {path.name: path.read_bytes() for path in (place / output).iterdir()}
        for output in ("one", "two")
    )
    assert one == two
    assert "clpstream.json" in one


def test_the_tokenizers_files_come_from_its_directory_alone(place: Path) -> None:
    for part in ("source", "helper", "new"):
        (place / part / "chat_template.jinja").write_text(f"template of {part}\n")
        (place / part / "preprocessor_config.json").write_text(f'{{"of": "{part}"}}')
        (place / part / "additional_chat_templates").mkdir()
        (place / part / "additional_chat_templates" / f"{part}.jinja").write_text("{{x}}")
        (place / part / "README.md").write_text(part)
    (place / "source" / "merges.txt").write_text("stale")
    (place / "helper" / "vocab.json").write_text("{}")
    report, _ = run(place, tokenizer=place / "new")
    target = place / "target"
    copied = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/new.jinja",
    ]
    for name in copied:
        assert (target / name).read_bytes() == (place / "new" / name).read_bytes()
    assert read_json(target / "preprocessor_config.json") == {"of": "source"}
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    made = {"config.json", "clpstream.json", "model.safetensors", "preprocessor_config.json"}
    assert found == {*copied, *made}
    stale = ["README.md", "additional_chat_templates/source.jinja", "merges.txt"]
    assert list(report.left_behind) == stale
    assert report.tokenizer.name == "new"
    content = (place / "new" / "tokenizer.json").read_bytes()
    assert report.tokenizer.sha256 == hashlib.sha256(content).hexdigest()


def test_the_helper_must_share_tokens_with_the_source_whatever_the_tokenizer(place: Path) -> None:
    write_helper(place / "helper", [" ja", " nein"], special={"unk": "?"})
    write_json(place / "helper" / "config.json", {"model_type": "gpt2"})
    with pytest.raises(VocabularyError, match=r"source.*helper.* no token in common"):
        run(place, tokenizer=place / "new")


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "metaspace", "byte-level"])
def test_every_kind_of_tokenizer_splits(place: Path, kind: str) -> None:
    """WordPiece without its unknown token gives an error for 'ab', with which no word can begin."""
    ids = write_source(place / "source", words=[*"abc", " c"], kind=kind)
    if kind == "wordpiece":
        tokenizer = read_json(place / "source" / "tokenizer.json")
        tokenizer["model"]["unk_token"] = "[UNK]"
        write_json(place / "source" / "tokenizer.json", tokenizer)
    write_helper(place / "helper", ["a", " c"])
    write_tokenizer(place / "new", [" cab", "ab"])
    _, after = run(place, tokenizer=place / "new")
    first = {"wordpiece": "c", "byte-level": "Ġc"}.get(kind, "▁c")
    inside = ["##a", "##b"] if kind == "wordpiece" else ["a", "b"]
    for token, pieces in ((1, [first, *inside]), (2, inside)):
        rows = rows_of(place, EMBEDDINGS)[[ids[piece] for piece in pieces]]
        assert close(after[EMBEDDINGS][token], rows.mean(axis=0))


# --- --map-token


def test_a_mapped_token_gets_the_row_or_the_mean_of_the_pieces(place: Path) -> None:
    mapped = {
        " und": " and",
        "Ġder": "Ġthe",
        "</s>": "</s>",
        " Haus": "aab",
        "ung": "</s>",
        "q": "zz",
    }
    report, after = run(place, map_tokens=mapped)
    for name in (EMBEDDINGS, HEAD):
        before = rows_of(place, name)
        copied = {" und": " and", " der": " the", "</s>": "</s>", "ung": "</s>", "a": "a"}
        for word, old in copied.items():
            assert after[name][HELPER[word]].tobytes() == before[SOURCE[old]].tobytes()
        assert close(after[name][HELPER[" Haus"]], split(place, name, ["a", "a", "b"]))
        assert close(after[name][HELPER["q"]], before[SOURCE["z"]])
    assert report.counts.rules["map"] == 4
    assert (report.counts.split, report.counts.missing) == (2, 0)
    assert report.options["map_tokens"] == mapped


@pytest.mark.parametrize(("text", "first", "last"), [("xyz", "x", "z"), ("aa", "a", "a")])
def test_ends_are_the_last_row_for_the_input_and_the_first_for_the_output(
    place: Path, text: str, first: str, last: str
) -> None:
    bias = np.linspace(-1, 1, len(SOURCE) + 3, dtype=np.float32)[None]
    change(place / "source", lambda tensors: tensors.update(final_logits_bias=bias))
    _, after = run(place, map_tokens={" und": text}, pieces="ends")
    token = HELPER[" und"]
    assert np.array_equal(after[EMBEDDINGS][token], rows_of(place, EMBEDDINGS)[SOURCE[last]])
    assert np.array_equal(after[HEAD][token], rows_of(place, HEAD)[SOURCE[first]])
    assert after["final_logits_bias"][0, token] == bias[0, SOURCE[first]]


def test_ends_need_the_row_that_they_take_alone(place: Path) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[EMBEDDINGS][SOURCE["y"]] = np.nan

    change(place / "source", damage)
    write_tokenizer(place / "new", ["a", "xyz"])
    write_helper(place / "helper", ["a", "b", "c"])
    _, after = run(place, tokenizer=place / "new", pieces="ends")
    assert np.array_equal(after[EMBEDDINGS][2], rows_of(place, EMBEDDINGS)[SOURCE["z"]])
    with pytest.raises(TransferError, match=r"'y'\) has NaN"):
        run(place, "other", tokenizer=place / "new")


def test_mapping_a_token_onto_itself_changes_no_row(place: Path) -> None:
    _, plain = run(place)
    _, mapped = run(place, "mapped", map_tokens={word: word for word in BOTH})
    assert all(np.array_equal(plain[name], mapped[name]) for name in plain)


def test_mapping_changes_no_other_row(place: Path) -> None:
    """The helper's row of ' und' and the source's of 'x' are not two rows of one token."""
    _, plain = run(place)
    _, mapped = run(place, "mapped", map_tokens={" und": "x", "a": "bc"})
    others = np.setdiff1d(np.arange(len(HELPER)), [HELPER[" und"], HELPER["a"]])
    for name in (EMBEDDINGS, HEAD):
        assert np.array_equal(plain[name][others], mapped[name][others])
        assert not np.array_equal(plain[name], mapped[name])


def test_a_text_is_the_real_piece_and_not_the_byte_that_it_falls_back_to(place: Path) -> None:
    words = ["a", "b", " "]
    ids = write_tokenizer(place / "source", words, "metaspace", byte_pieces=True)
    rows = random_rows(len(ids), WIDTH, 1)
    write_checkpoint(place / "source", {EMBEDDINGS: rows}, {"model_type": "llama"})
    write_helper(place / "helper", ["a", "b", "x"])
    _, after = run(place, map_tokens={"x": " "})
    assert np.array_equal(after[EMBEDDINGS][3], rows[ids["▁"]])


def test_special_tokens_are_mapped_like_others(place: Path) -> None:
    special = {"bos": "<s>", "eos": "<end>", "pad": "<pad>"}
    write_source(place / "source", special=special)
    write_tokenizer(place / "new", ["a", "b"], special={"eos": "</s>", "sep": "<turn>"})
    mapped = {"<turn>": "<end>", "</s>": "<pad>"}
    report, after = run(place, tokenizer=place / "new", map_tokens=mapped)
    before = rows_of(place, HEAD)
    assert np.array_equal(after[HEAD][:2], before[[2, 1]])
    table = [(entry.token, entry.roles, entry.row) for entry in report.special_tokens]
    assert table == [("</s>", ("eos",), "row of <pad>"), ("<turn>", ("sep",), "row of <end>")]


# --- gaps, padding, rows that one has and another has not


def test_rows_are_padded_like_the_sources_padding(place: Path) -> None:
    report, after = run(place, pad_to_multiple_of=64)
    for name in (EMBEDDINGS, HEAD):
        assert after[name].shape == (64, WIDTH)
        assert not after[name][len(HELPER) :].any()
        assert after[name][: len(HELPER)].any(axis=1).all()
    assert read_json(place / "target" / "config.json")["vocab_size"] == 64
    assert report.counts.unused == 64 - len(HELPER)


def test_a_multiple_that_fits_adds_no_row(place: Path) -> None:
    report, after = run(place, pad_to_multiple_of=len(HELPER) // 2)
    assert len(after[HEAD]) == len(HELPER)
    assert report.counts.unused == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_padding_of_nan_is_not_copied(place: Path, value: float) -> None:
    """Tensor by tensor: the head's padding is fine here."""

    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[EMBEDDINGS][len(SOURCE) :, 3] = value

    change(place / "source", damage)
    _, after = run(place, pad_to_multiple_of=50)
    assert close(after[EMBEDDINGS][len(HELPER) :], anchors_mean(place, EMBEDDINGS))
    assert not after[HEAD][len(HELPER) :].any()


def test_one_good_row_of_padding_is_enough(place: Path) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[HEAD][len(SOURCE)] = np.nan
        tensors[HEAD][len(SOURCE) + 1] = 0.25
        tensors[HEAD][len(SOURCE) + 2] = -np.inf

    change(place / "source", damage)
    _, after = run(place, pad_to_multiple_of=50)
    assert (after[HEAD][len(HELPER) :] == 0.25).all()


def test_without_padding_in_the_source_there_is_the_mean_row(place: Path) -> None:
    write_source(place / "source")
    _, after = run(place, pad_to_multiple_of=50)
    for name in (EMBEDDINGS, HEAD):
        assert close(after[name][len(HELPER) :], anchors_mean(place, name))


def test_gaps_between_ids_look_like_the_sources_own(place: Path) -> None:
    """In source and target the token at the end has a far id."""
    for part, words in (("source", SOURCE_WORDS), ("helper", TARGET_WORDS)):
        path = place / part / "tokenizer.json"
        tokenizer = read_json(path)
        tokenizer["model"]["vocab"][byte_level(words[-1])] += 3
        write_json(path, tokenizer)
    write_checkpoint(place / "helper", {TABLE: random_rows(len(HELPER) + 3, 8, 5)})
    gap = len(SOURCE) - 1
    rows = random_rows(len(SOURCE) + 3, WIDTH, 1)
    rows[gap : gap + 3] = np.arange(1, 4)[:, None]
    write_checkpoint(place / "source", {EMBEDDINGS: rows}, {"model_type": "llama"})
    report, after = run(place)
    assert after[EMBEDDINGS].shape == (len(HELPER) + 3, WIDTH)
    hole = len(HELPER) - 1
    assert np.array_equal(after[EMBEDDINGS][hole : hole + 3], rows[gap : gap + 3])
    assert (report.counts.unused, report.counts.target) == (3, len(HELPER))


def test_rows_behind_the_vocabulary_stay_there_and_are_no_padding(place: Path) -> None:
    """Cpmant has rows for prompts behind all others, in every table."""
    size = len(SOURCE) + 3

    def lengthen(tensors: dict[str, np.ndarray]) -> None:
        for seed, name in enumerate((EMBEDDINGS, HEAD)):
            tensors[name] = np.vstack([tensors[name], 9 + random_rows(2, WIDTH, seed)])

    change(place / "source", lengthen, vocab_size=size)
    report, after = run(place, pad_to_multiple_of=50)
    for name in (EMBEDDINGS, HEAD):
        assert after[name].shape == (52, WIDTH)
        assert not after[name][len(HELPER) : 50].any()
        assert np.array_equal(after[name][50:], rows_of(place, name)[size:])
        assert any(w.startswith(f"{name}: 2 rows behind") for w in report.warnings)


def test_nan_behind_the_vocabulary_is_told_by_its_row(place: Path) -> None:
    size = len(SOURCE) + 3

    def lengthen(tensors: dict[str, np.ndarray]) -> None:
        for name in (EMBEDDINGS, HEAD):
            tensors[name] = np.vstack([tensors[name], np.full((1, WIDTH), np.nan, np.float32)])

    change(place / "source", lengthen, vocab_size=size)
    with pytest.raises(TransferError, match=rf"row {size} has NaN"):
        run(place)


def test_a_head_with_fewer_rows_shares_the_tokens_that_both_tables_have(place: Path) -> None:
    """As mllama's, whose last embeddings are of tokens that stand for images."""
    rows = len(SOURCE) - 2  # ' house' and 'ing' have none in the head

    def shorten(tensors: dict[str, np.ndarray]) -> None:
        tensors[EMBEDDINGS] = tensors[EMBEDDINGS][: len(SOURCE)]
        tensors[HEAD] = tensors[HEAD][:rows]

    change(place / "source", shorten, vocab_size=rows)
    with pytest.raises(CheckpointError, match=r"lm_head.*' house' at 32.*--pass-through"):
        run(place)
    path = place / "source" / "tokenizer.json"
    tokenizer = read_json(path)
    last = list(tokenizer["model"]["vocab"].items())[rows:]
    entry = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] += [{**entry, "id": n, "content": t} for t, n in last]
    write_json(path, tokenizer)
    write_tokenizer(place / "new", ["ing", " in", " Haus", "x"])
    report, after = run(place, tokenizer=place / "new")
    for name in (EMBEDDINGS, HEAD):
        assert close(after[name][1], split(place, name, [*"ing"]))
        assert np.array_equal(after[name][2], rows_of(place, name)[SOURCE[" in"]])
        assert close(after[name][3], combined(place, name, [" Haus"])[0])
    assert np.array_equal(after[EMBEDDINGS][5:], rows_of(place, EMBEDDINGS)[rows:])
    assert (len(after[EMBEDDINGS]), len(after[HEAD])) == (7, 5)
    assert any("token ids from 32 to 33 have no row" in warning for warning in report.warnings)
    with pytest.raises(VocabularyError, match=r"'ing' is token 33, and the source has 32 rows"):
        run(place, "mapped", tokenizer=place / "new", map_tokens={"x": "ing"})


def test_tokens_that_were_added_without_a_change_of_the_config_are_in_the_vocabulary(
    place: Path,
) -> None:
    """config.json still has the old size: rows that have tokens are none for images."""
    change(place / "source", lambda tensors: None, vocab_size=len(SOURCE) - 4)
    report, after = run(place)
    assert len(after[EMBEDDINGS]) == len(HELPER)
    assert read_json(place / "target" / "config.json")["vocab_size"] == len(HELPER)
    assert report.counts.shared == len(BOTH)


def test_a_tokenizer_with_far_more_tokens_than_the_source_has_rows_is_refused(place: Path) -> None:
    def shorten(tensors: dict[str, np.ndarray]) -> None:
        for name in (EMBEDDINGS, HEAD):
            tensors[name] = tensors[name][:20]

    change(place / "source", shorten, vocab_size=20)
    with pytest.raises(CheckpointError, match=r"14 of its 33 tokens have no row.*does not belong"):
        run(place)


def test_a_helpers_special_token_behind_its_rows_is_made_from_its_name(place: Path) -> None:
    """As gemma-3's 262144: the table is a row too short for <image_soft_token>."""
    path = place / "helper" / "tokenizer.json"
    tokenizer = read_json(path)
    tokenizer["added_tokens"].append({"id": len(HELPER), "content": "image", "special": True})
    write_json(path, tokenizer)
    report, after = run(place)
    for name in (EMBEDDINGS, HEAD):
        assert close(after[name][len(HELPER)], split(place, name, [*"image"]))
    assert any("without a row in the helper" in w and "image" in w for w in report.warnings)
    table = {entry.token: entry.row for entry in report.special_tokens}
    assert table == {"</s>": "row of </s>", "image": "made from 'i', 'm', 'a', 'g', 'e'"}
    tokenizer["added_tokens"][-1]["special"] = False
    write_json(path, tokenizer)
    with pytest.raises(CheckpointError, match="does not belong to this helper"):
        run(place, "other")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"pad_token": "[PAD]"}),
        ("special_tokens_map.json", {"pad_token": {"content": "[PAD]"}}),
        ("special_tokens_map.json", {"additional_special_tokens": ["[PAD]"]}),
    ],
)
def test_an_added_pad_token_may_be_behind_the_helpers_rows(
    name: str, content: dict[str, Any], place: Path
) -> None:
    """As in many that were fine-tuned from Llama 2; added_tokens.json can't say what is special."""
    write_json(place / "helper" / "added_tokens.json", {"[PAD]": len(HELPER)})
    with pytest.raises(CheckpointError, match=r"'\[PAD\]' is 34\); the tokenizer does not belong"):
        run(place)
    write_json(place / "helper" / name, content)
    report, after = run(place)
    assert len(after[EMBEDDINGS]) == len(HELPER) + 1
    assert any("without a row in the helper" in w and "[PAD]" in w for w in report.warnings)


# --- other vocabulary tensors


def test_a_bias_with_the_vocabulary_on_its_second_axis(place: Path) -> None:
    bias = np.linspace(-1, 1, len(SOURCE) + 3, dtype=np.float32)[None]
    bias[0, len(SOURCE) :] = -30
    change(place / "source", lambda tensors: tensors.update(final_logits_bias=bias))
    _, after = run(place, tokenizer=place / "new", pad_to_multiple_of=20)
    made = after["final_logits_bias"]
    ids = {word: token for token, word in enumerate(["<s>", "</s>", "pad", *NEW_WORDS])}
    assert made.shape == (1, 20)
    assert made[0, ids[" and"]] == bias[0, SOURCE[" and"]]
    assert np.isclose(made[0, ids["cab"]], np.mean([bias[0, SOURCE[c]] for c in "cab"]))
    assert (made[0, len(ids) :] == -30).all()


def test_a_head_with_the_vocabulary_on_its_second_axis(place: Path) -> None:
    """Mobilebert's [width, vocabulary] gets columns where others get rows."""
    name = "cls.predictions.dense.weight"
    plain = random_rows(len(SOURCE) + 3, 5, 7)

    def turned(tensors: dict[str, np.ndarray]) -> None:
        tensors.pop(HEAD)
        tensors[name] = np.ascontiguousarray(plain.T)

    change(place / "source", lambda tensors: tensors.update({HEAD: plain}))
    _, straight = run(place, "straight", tokenizer=place / "new", pad_to_multiple_of=20)
    change(place / "source", turned)
    _, after = run(place, tokenizer=place / "new", pad_to_multiple_of=20)
    assert after[name].shape == (5, 20)
    assert close(after[name].T, straight[HEAD])
    assert np.array_equal(after[name][:, [5, 6]].T, plain[[SOURCE[" and"], SOURCE["z"]]])


def test_a_table_of_integers_obeys_pieces_too(place: Path) -> None:
    experts = np.arange(2 * (len(SOURCE) + 3)).reshape(-1, 2)
    change(place / "source", lambda tensors: tensors.update({"gate.tid2eid": experts}))
    for pieces, piece in (("mean", "c"), ("ends", "b")):  # it is read like input embeddings
        _, after = run(
            place, pieces, tokenizer=place / "new", pieces=pieces, map_tokens={"z": "cab"}
        )
        token = read_json(place / "new" / "tokenizer.json")["model"]["vocab"]["z"]
        assert np.array_equal(after["gate.tid2eid"][token], experts[SOURCE[piece]])


def test_a_table_of_integers_gets_whole_rows(place: Path) -> None:
    """Deepseek-v4 says by token which experts see it: that can't be averaged."""
    name = "model.layers.0.mlp.gate.tid2eid"
    table = np.arange(2 * (len(SOURCE) + 3), dtype=np.int64).reshape(-1, 2) * 7
    change(place / "source", lambda tensors: tensors.update({name: table}))
    _, after = run(place, tokenizer=place / "new", pad_to_multiple_of=20)
    ids = {word: token for token, word in enumerate(["<s>", "</s>", "pad", *NEW_WORDS])}
    made = after[name]
    assert (made.dtype, made.shape) == (np.int64, (20, 2))
    for word in ("</s>", " and", "z", " the"):
        assert np.array_equal(made[ids[word]], table[SOURCE[word]])
    for word in (" Haus", " der"):
        assert np.array_equal(made[ids[word]], table[SOURCE[nearest(place, word)]])
    assert np.array_equal(made[ids["cab"]], table[SOURCE["c"]])
    assert {tuple(row) for row in made[len(ids) :]} <= {tuple(row) for row in table[len(SOURCE) :]}
    assert {tuple(row) for row in made} <= {tuple(row) for row in table}


def test_tables_of_integers_look_for_a_tokens_nearest_once(place: Path, monkeypatch: Any) -> None:
    """Whatever their number, and how many planes each has."""
    tables = np.arange(6 * (len(SOURCE) + 3)).reshape(3, -1, 2)
    names = [f"model.layers.{layer}.mlp.gate.tid2eid" for layer in (0, 1)]
    change(place / "source", lambda tensors: tensors.update(dict.fromkeys(names, tables)))
    asked: list[int] = []
    told = PreparedMap.nearest

    def nearest_of(prepared: Any, rows: Any, top: int) -> Any:
        asked.extend(rows)
        return told(prepared, rows, top)

    monkeypatch.setattr(PreparedMap, "nearest", nearest_of)
    _, after = run(place, tokenizer=place / "new", method="align")
    ids = {word: token for token, word in enumerate(["<s>", "</s>", "pad", *NEW_WORDS])}
    for name in names:
        found = after[name][:, ids[" Haus"]]
        assert np.array_equal(found, tables[:, SOURCE[nearest(place, " Haus")]])
    assert asked
    assert len(asked) == len(set(asked))


# --- what became of special tokens and of ids


def test_every_special_token_is_in_the_table_those_with_a_role_first(place: Path) -> None:
    special = {"bos": "<s>", "eos": "</s>", "pad": "pad", "unk": "</s>"}
    write_tokenizer(place / "new", NEW_WORDS, special=special)
    tokenizer = read_json(place / "new" / "tokenizer.json")
    extra = [(20, "zoo"), (21, "☃☃"), (22, "sad")]
    tokenizer["added_tokens"] += [{"id": i, "content": t, "special": True} for i, t in extra]
    write_json(place / "new" / "tokenizer.json", tokenizer)
    settings = read_json(place / "new" / "tokenizer_config.json")
    write_json(place / "new" / "tokenizer_config.json", settings | {"sep_token": "sad"})
    report, _ = run(place, tokenizer=place / "new", map_tokens={"sad": " the"})
    table = [(entry.id, entry.token, entry.roles, entry.row) for entry in report.special_tokens]
    assert table == [
        (0, "<s>", ("bos",), "mean row"),
        (1, "</s>", ("eos", "unk"), "row of </s>"),
        (2, "pad", ("pad",), "made from 'p', 'a', 'd'"),
        (22, "sad", ("sep",), "row of ' the'"),
        (20, "zoo", (), "made from 'z', 'o', 'o'"),
        (21, "☃☃", (), "mean row"),
    ]
    stored = read_json(place / "target" / "clpstream.json")["special_tokens"]
    assert [entry["row"] for entry in stored] == [row for *_, row in table]


def test_ids_beyond_a_smaller_target_are_moved_or_named(place: Path) -> None:
    """Of a target with four tokens, no id of the source may stay without a word."""
    write_tokenizer(place / "new", ["a", "b", " and"])
    a, z, the, last = (SOURCE[word] for word in ("a", "z", " the", "ing"))
    slices = {"slice_start_id": SOURCE[" and"], "slice_end_id": SOURCE["b"]}
    ids = {
        "eos_token_id": [0, a, z],
        "suppress_tokens": [a, the],
        "begin_suppress_tokens": [z],
        "bad_words_ids": [[z], [a]],
        "forced_decoder_ids": [[1, last]],
        "forced_bos_token_id": last,
        "decoder_start_token_id": 0,
        "pad_token_id": the,
        "lang_to_id": {"<de>": z, "<en>": a},
    }
    write_json(place / "source" / "generation_config.json", ids | {"temperature": 0.5})
    change(place / "source", lambda tensors: None, image_token_id=last, **slices, newline_id=z)
    report, _ = run(place, tokenizer=place / "new")
    made = read_json(place / "target" / "generation_config.json")
    assert made["eos_token_id"] == [0, 1]
    assert made["suppress_tokens"] == [1]
    assert made["begin_suppress_tokens"] == []
    assert made["lang_to_id"] == {"<en>": 1}
    assert made["decoder_start_token_id"] == 0
    assert made["pad_token_id"] == 0
    assert made["temperature"] == 0.5
    config = read_json(place / "target" / "config.json")
    assert (config["slice_start_id"], config["slice_end_id"], config["eos_token_id"]) == (3, 2, 0)
    named = " ".join(report.warnings)
    for key in {*ids, "image_token_id", "newline_id"} - {"decoder_start_token_id"}:
        assert f": {key}: " in named, key
    assert "slice_" not in named


def test_ids_under_the_names_of_old_configs(place: Path) -> None:
    """Xlm's attribute bos_token_id is bos_index in its file."""
    write_source(
        place / "source", special={"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "?"}
    )
    write_helper(place / "helper", special={"unk": "?", "eos": "</s>", "bos": "<s>"})
    old = {"bos_index": 0, "eos_index": 1, "pad_index": 2, "unk_index": 3}
    change(place / "source", lambda tensors: None, **old)
    report, _ = run(place)
    config = read_json(place / "target" / "config.json")
    new = {"bos_index": 2, "eos_index": 1, "pad_index": 0, "unk_index": 0}
    assert {key: config[key] for key in old} == new
    assert any("pad_index" in warning for warning in report.warnings)


# --- the command line


def test_the_command_line_is_the_library(place: Path) -> None:
    mapped = {" Haus": "ab", "=": "a", "z": "="}
    write_tokenizer(place / "new", [*NEW_WORDS, "="])
    words = [*SOURCE_WORDS, "="]
    write_source(place / "source", words=words, padding=3)
    pairs = [f"--map-token={target}={source}" for target, source in mapped.items()]
    done = command(
        place, "--tokenizer", "new", *pairs, "--pieces", "ends", "--pad-to-multiple-of", "16"
    )
    assert done.returncode == 0, done.stderr
    made = read_tensors(place / "target")
    _, expected = run(
        place,
        "other",
        tokenizer=place / "new",
        map_tokens=mapped,
        pieces="ends",
        pad_to_multiple_of=16,
    )
    assert all(np.array_equal(made[name], expected[name]) for name in expected)
    assert np.array_equal(made[HEAD][4], rows_of(place, HEAD)[len(SOURCE)])
    for line in (
        b"\ntokenizer new: 12 tokens\n",
        b"\nsplit     3: ",
        b"\nunused    4 ids ",
        b" 2 by map",
    ):
        assert line in done.stdout, done.stdout.decode()


def test_the_options_are_variables_too(place: Path) -> None:
    done = command(
        place,
        CLPSTREAM_TOKENIZER="new",
        CLPSTREAM_PIECES="ends",
        CLPSTREAM_PAD_TO_MULTIPLE_OF="16",
        CLPSTREAM_MAP_TOKEN="z=a\n☃= house",
    )
    assert done.returncode == 0, done.stderr
    options = read_json(place / "target" / "clpstream.json")["options"]
    assert options["map_tokens"] == {"z": "a", "☃": " house"}
    assert (options["pieces"], options["pad_to_multiple_of"]) == ("ends", 16)
    assert read_tensors(place / "target")[HEAD].shape == (16, WIDTH)


def test_no_tokens_name_reaches_a_terminal_raw(place: Path) -> None:
    write_tokenizer(place / "new", ["a", "b"], special={"eos": "\x1b[31m\n</s>"})
    done = command(place, "--tokenizer", "new")
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert rb"\x1b[31m\n</s>" in done.stdout


MISTAKES = {
    "no pair": (["--map-token", "und"], "'und'"),
    "no source": (["--map-token", "und="], "'und='"),
    "twice": (["--map-token", "a=b", "--map-token", "a=c"], "'a' is there twice"),
    "twice in two ways": (["--map-token", " und=b", "--map-token", "Ġund=c"], "'Ġund'"),
    "no target token": (["--map-token", "zzz=a"], "no token 'zzz'"),
    "no source token": (["--map-token", " und=☃"], "'☃' is no token"),
    "not UTF-8": (["--map-token", os.fsdecode(b" und=\xff\xfe")], r"'\udcff\udcfe' is no token"),
    "no rows": (["--pad-to-multiple-of", "0"], "not in the range"),
    "too many rows": (["--pad-to-multiple-of", "99999999999"], "1<=x<=65536"),
    "no such rule": (["--pieces", "median"], "'median'"),
    "no tokenizer": (["--tokenizer", "."], "no tokenizer in it"),
    "no directory": (["--tokenizer", "./nowhere"], "nowhere: "),
    "an unread tokenizer": (["--map-token", " und=ab"], "the tokenizers library can't read it"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(place: Path, name: str) -> None:
    arguments, says = MISTAKES[name]
    if name == "an unread tokenizer":
        path = place / "source" / "tokenizer.json"
        write_json(path, read_json(path) | {"normalizer": {"type": "FromTheFuture"}})
    done = command(place, *arguments, "--quiet")
    message = done.stderr.decode()
    assert done.returncode == 2, message
    assert says in message.strip().splitlines()[-1]
    assert "Traceback" not in message
    assert message.count("\n") == 1 or message.startswith("Usage")
    assert done.stdout == b""
    assert not (place / "target").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pieces": "median"}, "mean, ends"),
        ({"pad_to_multiple_of": 0}, "at least 1|from 1"),
        ({"pad_to_multiple_of": -8}, "at least 1|from 1"),
        ({"map_tokens": {"": "a"}}, "no token ''"),
        ({"map_tokens": {"a": ""}}, "'' is no token"),
    ],
)
def test_the_library_says_what_is_wrong(place: Path, arguments: Any, says: str) -> None:
    with pytest.raises(ClpstreamError, match=says):
        run(place, **arguments)
    assert not (place / "target").exists()
