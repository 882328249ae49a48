"""Texts are split into ordinary tokens whose bytes in a row are the text."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make import read_json, write_json, write_tokenizer
from tokenizers import Tokenizer

from clpstream import VocabularyError, read_vocabulary
from clpstream.vocabulary import Splitter, Vocabulary


def splitter(directory: Path, *words: str, **settings: object) -> Splitter:
    write_tokenizer(directory, list(words), **settings)
    return Splitter(read_vocabulary(directory))


def with_merges(directory: Path, *merges: tuple[str, str]) -> None:
    tokenizer = read_json(directory / "tokenizer.json")
    tokenizer["model"]["merges"] = merges
    write_json(directory / "tokenizer.json", tokenizer)


def test_the_tokenizers_own_split_goes_before_the_shortest(tmp_path):
    words = ["a", "b", "c", "ab", "bc", "abc"]
    write_tokenizer(tmp_path, words)
    with_merges(tmp_path, ("b", "c"))
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = Splitter(read_vocabulary(tmp_path))(b"abc")
    assert ids == library.encode("abc").ids == [1, 5]


def test_a_split_that_changes_the_text_is_not_taken(tmp_path):
    write_tokenizer(tmp_path, ["a", "b", "B"])
    tokenizer = read_json(tmp_path / "tokenizer.json")
    write_json(tmp_path / "tokenizer.json", {**tokenizer, "normalizer": {"type": "Lowercase"}})
    assert Splitter(read_vocabulary(tmp_path))(b"aB") == [1, 3]


def test_special_tokens_and_truncation_are_left_out(tmp_path):
    write_tokenizer(tmp_path, ["<", "/", "s", ">", "a"])
    tokenizer = read_json(tmp_path / "tokenizer.json")
    tokenizer["truncation"] = {
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    write_json(tmp_path / "tokenizer.json", tokenizer)
    split = Splitter(read_vocabulary(tmp_path))
    assert split(b"</s>") == [1, 2, 3, 4]
    assert split(b"aaa") == [5, 5, 5]


def test_a_part_on_which_the_tokenizers_library_panics_is_an_error_like_others(tmp_path):
    write_tokenizer(tmp_path, ["a"])
    tokenizer = read_json(tmp_path / "tokenizer.json")
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "!!"}
    write_json(tmp_path / "tokenizer.json", {**tokenizer, "normalizer": normalizer})
    with pytest.raises(VocabularyError, match=r"tokenizer.json: the tokenizers library can't"):
        Splitter(read_vocabulary(tmp_path))(b"a")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_run_while_a_tokenizer_is_read_stops_it(stop, tmp_path, monkeypatch):
    class Stopped:
        @staticmethod
        def from_file(path):
            raise stop

    monkeypatch.setattr("tokenizers.Tokenizer", Stopped)
    with pytest.raises(stop):
        splitter(tmp_path, "a")(b"a")


@pytest.mark.parametrize("kind", ["unigram", "metaspace"])
def test_a_space_before_the_text_is_the_texts_own_or_is_asked_for(kind, tmp_path):
    split = splitter(tmp_path, " Haus", "Haus", "x", " ", kind=kind)
    ids = {piece: token for token, piece in enumerate(read_vocabulary(tmp_path).pieces)}
    space, bare = ids["\u2581Haus"], ids["Haus"]
    assert split(b" Haus") == [space]
    assert split(b"Haus") == [bare]
    prefixes = kind == "unigram"
    assert split(b"Haus", space_before=True) == ([space] if prefixes else [bare])


def test_what_can_not_be_split_is_none(tmp_path):
    split = splitter(tmp_path, "a", "b")
    assert split("aé".encode()) is None
    assert split(b"") is None
    assert split(b"\xff") is None


def test_ids_without_a_row_are_not_used(tmp_path):
    write_tokenizer(tmp_path, ["a", "b", "ab"])
    with_merges(tmp_path, ("a", "b"))
    vocabulary = read_vocabulary(tmp_path)
    assert Splitter(vocabulary)(b"ab") == [3]
    assert Splitter(vocabulary, rows=3)(b"ab") == [1, 2]
    assert Splitter(vocabulary, rows=2)(b"ab") is None


def test_bytes_that_are_no_text_are_split_too(tmp_path):
    split = splitter(tmp_path, "中", "x", kind="metaspace", byte_pieces=True)
    pieces = read_vocabulary(tmp_path).pieces
    assert [pieces[token] for token in split("中".encode()[:2] + b"x")] == ["<0xE4>", "<0xB8>", "x"]


def brute_force(tokens: dict[bytes, int], text: bytes) -> list[int] | None:
    """The fewest tokens; of these splits the one with the longest first token, and so on."""
    places = range(1, len(text))
    for count in range(len(text)):
        found = []
        for cuts in combinations(places, count):
            edges = [0, *cuts, len(text)]
            parts = [text[a:b] for a, b in pairwise(edges)]
            if all(part in tokens for part in parts):
                found.append(([-len(part) for part in parts], parts))
        if found:
            return [tokens[part] for part in min(found)[1]]
    return None


PARTS = st.binary(min_size=1, max_size=4).map(lambda part: bytes(byte % 3 + 97 for byte in part))


@given(
    st.lists(PARTS, unique=True, min_size=1, max_size=8), st.lists(PARTS, min_size=1, max_size=3)
)
@settings(deadline=None)
def test_without_a_tokenizer_json_the_split_is_the_shortest(tokens, texts):
    pieces = tuple(token.decode() for token in tokens)
    split = Splitter(Vocabulary(Path("x.tiktoken"), "tiktoken", pieces, tuple(tokens), {}, {}))
    text = b"".join(texts)[:9]
    assert split(text) == brute_force({token: i for i, token in enumerate(tokens)}, text)


def test_a_real_piece_goes_before_a_byte_piece_and_the_lowest_id_before_others():
    pieces, text = ("<0x41>", "A", "A"), (b"A", b"A", b"A")
    assert Splitter(Vocabulary(Path("x.model"), "BPE", pieces, text, {}, {}))(b"AA") == [1, 1]
