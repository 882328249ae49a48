"""What `clpstream score` does to a text before a model sees it; no torch is needed for these."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make import read_json, write_json, write_source, write_tokenizer

import clpstream
from clpstream.errors import ScoringError
from clpstream.scoring import documents, read_documents
from clpstream.scoring.documents import BLOCK_BYTES, block_edges, cut
from clpstream.scoring.intervals import interval
from clpstream.scoring.tokens import Encoder
from clpstream.scoring.windows import windows


def run(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "clpstream", "score", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )


def write_text(path, text):
    path.write_bytes(text.encode())
    return path


# --- documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("one\ntwo\n", ["one\ntwo"]),
        ("one\n<|endoftext|>\ntwo\n", ["one", "two"]),
        ("<|endoftext|>\none\n\n<|endoftext|>\n<|endoftext|>\n two <|endoftext|>", [
            "one", " two <|endoftext|>"
        ]),
        ("one\r\n<|endoftext|>\r\ntwo\r\nthree", ["one", "two\r\nthree"]),
    ],
)  # fmt: skip
def test_separator_lines_separate_documents(tmp_path, text, found):
    assert read_documents([write_text(tmp_path / "a", text)]) == found


def test_files_are_documents_of_their_own_in_order(tmp_path):
    files = [write_text(tmp_path / name, name) for name in "ba"]
    assert read_documents(files) == ["b", "a"]


def test_a_text_that_can_not_be_read_is_one_line(tmp_path):
    (tmp_path / "latin").write_bytes("Größe".encode("latin-1"))
    write_text(tmp_path / "empty", "\n<|endoftext|>\n")
    for name, what in (("nowhere", "No such file"), ("latin", "UTF-8"), ("empty", "no text in it")):
        with pytest.raises(ScoringError, match=what):
            read_documents([tmp_path / name])
        done = run("no-model", "--text", tmp_path / name)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert what in done.stderr


def test_one_file_is_no_list_of_files(tmp_path):
    file = write_text(tmp_path / "a", "text")
    for one in (file, str(file)):
        with pytest.raises(ScoringError, match=f"list of files, not a {type(one).__name__}"):
            read_documents(one)


def test_long_documents_are_cut_at_ends_of_lines(monkeypatch):
    monkeypatch.setattr(documents, "LONGEST", 10)
    text = "123\n5678\nabcdefghijklmno\nx"
    assert list(cut(text)) == ["123\n5678\n", "abcdefghij", "klmno\nx"]
    assert list(cut("short")) == ["short"]


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES // 2 + 1, 1_000_003])
def test_blocks_are_alike_and_cover_the_document(size):
    edges = block_edges(size)
    lengths = np.diff(edges)
    assert (edges[0], edges[-1]) == (0, size)
    assert np.ptp(lengths) <= 1
    if size > BLOCK_BYTES:
        assert 0.7 * BLOCK_BYTES < lengths.mean() < 1.5 * BLOCK_BYTES


# --- windows -------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(2, 40), st.data())
def test_every_token_counts_once_and_has_its_context(tokens, context, data):
    stride = data.draw(st.integers(1, context - 1))
    found = list(windows(3, tokens, context, stride))
    counted = [place for window in found for place in range(window.scored, window.end)]
    assert counted == list(range(tokens))
    for window in found:
        assert window.document == 3
        assert window.length == min(context, tokens)
        if window.begin:
            assert window.scored - window.begin >= context - stride
    assert all(one.end == other.scored for one, other in pairwise(found))


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [("byte-level", "ab b abcdeee"), ("metaspace", "ab b ö abcd"), ("unigram", "ab b ä abcd")],
)
def test_tokens_know_where_in_the_text_they_end(tmp_path, kind, text):
    words = [*"abcdefgh", "ä", " b", " "]
    special = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
    write_tokenizer(tmp_path, words, kind, special, byte_pieces=kind == "metaspace")
    tokens = Encoder(tmp_path)(text)
    pieces = [Encoder(tmp_path).vocabulary.text[token] for token in tokens.ids]
    assert (tokens.kept, tokens.unknown, tokens.size) == (True, 0, 12)
    assert len(tokens.ids) == len(tokens.ends)
    assert tokens.ends[-1] == tokens.size
    assert b"".join(pieces).strip() == text.encode()
    shift = len(b"".join(pieces)) - tokens.size  # the space that is put before a text
    assert tokens.ends.tolist() == (np.cumsum([*map(len, pieces)]) - shift).clip(0).tolist()


def test_unknown_text_is_counted_and_keeps_its_place(tmp_path):
    write_tokenizer(tmp_path, [*"abc", " "], "unigram", {"unk": "<unk>"})
    tokens = Encoder(tmp_path)("abäc")
    assert (tokens.kept, tokens.unknown, tokens.size) == (False, 1, 5)
    assert tokens.ends[-2:].tolist() == [4, 5]


def test_text_that_gets_no_token_at_all_is_noticed(tmp_path):
    """BPE without an unknown token drops what it does not know."""
    write_tokenizer(tmp_path, [*"abc"])
    tokens = Encoder(tmp_path)("abXc")
    assert (tokens.kept, tokens.unknown, len(tokens.ids)) == (False, 0, 3)


def test_what_looks_like_a_special_token_is_text(tmp_path):
    write_tokenizer(tmp_path, [*"</s>ab"], special={"eos": "</s>"})
    tokens = Encoder(tmp_path)("a</s>b")
    assert (tokens.kept, len(tokens.ids)) == (True, 6)


def test_a_post_processor_adds_nothing(tmp_path):
    ids = write_tokenizer(tmp_path, [*"ab"], special={"bos": "<s>"})
    content = read_json(tmp_path / "tokenizer.json")
    bos = {"id": "<s>", "ids": [0], "tokens": ["<s>"]}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "special_tokens": {"<s>": bos},
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, text], "pair": [text, text],
    }  # fmt: skip
    content["truncation"] = {
        "max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"
    }  # fmt: skip
    write_json(tmp_path / "tokenizer.json", content)
    assert Encoder(tmp_path)("ab").ids.tolist() == [ids["a"], ids["b"]]


@pytest.mark.parametrize(
    ("special", "first"),
    [({"eos": "</s>", "bos": "<s>"}, "<s>"), ({"eos": "</s>"}, "</s>"), ({"unk": "<unk>"}, None)],
)
def test_bos_comes_first_or_else_eos(tmp_path, special, first):
    ids = write_tokenizer(tmp_path, [*"ab"], special=special)
    assert Encoder(tmp_path).first == ids.get(first)


# --- intervals -----------------------------------------------------------------------------------


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """Blocks of unequal size, whose bits spread by 1 per byte; 0.95 with an error of 0.016."""
    random = np.random.default_rng(1)
    covered = []
    for _ in range(200):
        sizes = random.integers(500, 5000, 60)
        found = interval(sizes * random.normal(2, 1, 60), sizes)
        covered.append(found.low <= 2 <= found.high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_an_interval_of_equal_blocks_has_no_width_and_one_block_has_none():
    sizes = np.full(9, 10)
    assert interval(np.zeros(9), sizes) == (0, 0)
    assert interval(np.full(9, 5.0), sizes) == (0.5, 0.5)
    assert interval(np.ones(1), sizes[:1]) is None


def test_an_interval_is_the_same_every_time():
    bits, sizes = np.arange(30.0), np.full(30, 7)
    assert interval(bits, sizes) == interval(bits, sizes)


# --- the command ---------------------------------------------------------------------------------


def test_without_a_text_it_says_what_to_give(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert "--text FILE" in done.stderr
    write_json(tmp_path / "clpstream.json", {"helper": {"name": "org/helper@abc"}})
    assert "org/helper@abc" in run(tmp_path).stderr
    text = write_text(tmp_path / "text", "some")
    both = run(tmp_path, "--text", text, "--sample-from", tmp_path)
    assert (both.returncode, "give one of them" in both.stderr) == (2, True)


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_without_torch_or_transformers_it_says_how_to_install_them(tmp_path, absent):
    write_source(tmp_path / "model")
    write_text(tmp_path / "text", "some")
    code = (
        "import sys\n"
        f"sys.modules[{absent!r}] = None\n"
        "sys.argv = ['clpstream', 'score', *sys.argv[1:]]\n"
        "from clpstream.cli import main; main()"
    )
    arguments = [str(tmp_path / "model"), "--text", str(tmp_path / "text")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'clpstream[score]'" in done.stderr


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, clpstream, clpstream.cli, clpstream.scoring; clpstream.score\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_str_is_no_list_of_documents():
    with pytest.raises(ScoringError, match="list of documents"):
        clpstream.score("model", "some text")
    with pytest.raises(ScoringError, match="no text"):
        clpstream.score("model", [""])
