"""What tokens stand for, and which tokens two vocabularies share."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make import byte_level, read_json, write_json, write_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from clpstream import VocabularyError, match, read_vocabulary
from clpstream.vocabulary.pieces import (
    BYTE_ALPHABET,
    BYTE_LEVEL,
    SENTENCEPIECE,
    WORD_PIECE,
    piece_reader,
)

ENGLISH = ["The house is big, the garden is small: 12 trees.", "In Spain one has a siesta!"] * 3
GERMAN = ["Das Haus ist groß, der Garten klein: 12 Bäume.", "In Spanien hält man Siesta!"] * 3


def train(kind: str, text: list[str]) -> Tokenizer:
    """A tokenizer of a family, made by the tokenizers library."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special)
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> Path:
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": {"content": "</s>"}},
    )
    return directory


FAMILIES = ("byte-level", "unigram", "wordpiece")


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_bytes_of_a_texts_tokens_are_the_text(kind, tmp_path):
    tokenizer = train(kind, ENGLISH + GERMAN)
    vocabulary = read_vocabulary(save(tokenizer, tmp_path / "model"))
    for line in ENGLISH[:2] + GERMAN[:2]:
        ids = tokenizer.encode(line, add_special_tokens=False).ids
        text = b"".join(vocabulary.text[token] for token in ids)
        assert text.decode().strip() == line


@pytest.mark.parametrize("kind", FAMILIES)
def test_ids_and_pieces_are_those_of_the_tokenizers_library(kind, tmp_path):
    tokenizer = train(kind, GERMAN)
    vocabulary = read_vocabulary(save(tokenizer, tmp_path / "model"))
    assert vocabulary.size == max(tokenizer.get_vocab().values()) + 1
    assert len(vocabulary) == tokenizer.get_vocab_size()
    for piece, token in tokenizer.get_vocab().items():
        assert vocabulary.pieces[token] == piece
    assert vocabulary.roles == {"unk": 0, "bos": 1, "eos": 2}
    assert [vocabulary.text[token] for token in (0, 1, 2)] == [None] * 3


@pytest.mark.parametrize("target", FAMILIES)
@pytest.mark.parametrize("source", FAMILIES)
def test_shared_tokens_stand_for_the_same_bytes(source, target, tmp_path):
    old = read_vocabulary(save(train(source, ENGLISH), tmp_path / "source"))
    new = read_vocabulary(save(train(target, GERMAN), tmp_path / "target"))
    overlap = match(old, new)
    texts = {text for text in old.text if text is not None}
    for token, found in enumerate(overlap.source_of):
        text = new.text[token]
        if text is None:
            assert old.pieces[found] == new.pieces[token]  # bos, eos and unk have the same names
        elif found >= 0:
            assert old.text[found] == text
        else:
            assert text not in texts
    assert overlap.rules["role"] == 3
    assert overlap.rules["bytes"] == len(overlap.shared) - 3 > 10


def test_one_family_shares_exactly_its_common_strings(tmp_path):
    write_tokenizer(tmp_path / "a", ["x", " und", "ß", " the"])
    write_tokenizer(tmp_path / "b", [" the", "y", "ß"])
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    for rule in ("bytes", "exact"):
        assert match(old, new, rule).source_of.tolist() == [0, 4, -1, 3]


def test_words_are_found_across_families_by_bytes_and_not_by_strings(tmp_path):
    words = [" und", "ß", " über", "x"]
    write_tokenizer(tmp_path / "a", words)
    write_tokenizer(tmp_path / "b", words, "metaspace")
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert match(old, new).source_of.tolist() == [0, 1, 2, 3, 4]
    assert match(old, new, "exact").source_of.tolist() == [0, -1, -1, -1, 4]


def test_a_string_that_means_other_bytes_is_not_shared(tmp_path):
    """'Ã¼' is 'ü' to a byte-level tokenizer and itself to sentencepiece."""
    write_tokenizer(tmp_path / "a", ["ü", "x"])
    write_tokenizer(tmp_path / "b", [byte_level("ü"), "x"], "metaspace")
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert match(old, new).source_of.tolist() == [0, -1, 2]
    assert match(old, new, "exact").source_of.tolist() == [0, 1, 2]


def test_a_real_piece_goes_before_a_byte_fallback_piece(tmp_path):
    ids = write_tokenizer(tmp_path / "a", ["A", "é"], "metaspace", byte_pieces=True)
    write_tokenizer(tmp_path / "b", ["A", "B"])
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert match(old, new).source_of.tolist() == [0, ids["A"], ids["<0x42>"]]


def test_byte_fallback_pieces_find_each_other(tmp_path):
    ids = write_tokenizer(tmp_path / "a", ["A"], "metaspace", byte_pieces=True)
    overlap = match(read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "a"))
    assert overlap.source_of.tolist() == list(range(len(ids)))


def test_special_tokens_match_by_role_then_by_name(tmp_path):
    write_tokenizer(tmp_path / "a", ["x"], special={"bos": "<s>", "eos": "</s>", "pad": "[P]"})
    write_tokenizer(
        tmp_path / "b", ["x"], special={"bos": "<|begin|>", "eos": "<|end|>", "mask": "[P]"}
    )
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    overlap = match(old, new)
    assert overlap.source_of.tolist() == [0, 1, 2, 3]
    assert overlap.rules == {"role": 2, "name": 1, "bytes": 1}


def test_tokens_that_both_have_keep_their_rows_although_their_roles_differ(tmp_path):
    """As a base model and a chat model of one family, whose texts end with different tokens."""
    for name, end in (("base", "<|end|>"), ("chat", "<|turn|>")):
        write_tokenizer(tmp_path / name, ["x"], special={"bos": "<|end|>", "pad": "<|turn|>"})
        write_json(
            tmp_path / name / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end},
        )
    base, chat = (read_vocabulary(tmp_path / name) for name in ("base", "chat"))
    assert (base.roles["eos"], chat.roles["eos"]) == (0, 1)
    for source, target in ((base, chat), (chat, base)):
        assert match(source, target).source_of.tolist() == [0, 1, 2]


def test_a_token_is_found_by_name_where_one_file_calls_it_special_and_one_does_not(tmp_path):
    for name, special in (("a", True), ("b", False)):
        write_tokenizer(tmp_path / name, ["x"], special={"eos": "</s>", "pad": "<mask>"})
        tokenizer = read_json(tmp_path / name / "tokenizer.json")
        tokenizer["added_tokens"][1]["special"] = special
        del tokenizer["model"]["vocab"]["<mask>"]
        write_json(tmp_path / name / "tokenizer.json", tokenizer)
        write_json(tmp_path / name / "tokenizer_config.json", {"eos_token": "</s>"})
    a, b = (read_vocabulary(tmp_path / name) for name in ("a", "b"))
    assert (a.text[1], b.text[1]) == (None, b"<mask>")
    for source, target in ((a, b), (b, a)):
        assert match(source, target).source_of.tolist() == [0, 1, 2]
        assert match(source, target).rules["name"] == 1


def test_text_that_looks_like_another_models_special_token_is_not_it(tmp_path):
    """Gemma's '<s>' is HTML, and Llama's begins a text."""
    write_tokenizer(tmp_path / "a", ["x"], special={"bos": "<s>"})
    write_tokenizer(tmp_path / "b", ["x"], special={"bos": "<bos>"})
    write_json(tmp_path / "b" / "added_tokens.json", {"<s>": 2})
    llama, gemma = (read_vocabulary(tmp_path / name) for name in ("a", "b"))
    assert match(llama, gemma).source_of.tolist() == [0, 1, -1]
    assert match(gemma, llama).source_of.tolist() == [0, 1]


def test_a_token_that_begins_and_ends_texts_gets_the_row_that_ends_them(tmp_path):
    """Else a Llama with GPT-2's tokenizer would never stop."""
    write_tokenizer(tmp_path / "a", ["x"], special={"bos": "<s>", "eos": "</s>"})
    write_tokenizer(tmp_path / "b", ["x"], special={"bos": "<|end|>", "eos": "<|end|>"})
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert match(old, new).source_of.tolist() == [1, 2]


def test_a_pad_token_that_is_also_text_stays_text(tmp_path):
    for name in ("a", "b"):
        write_tokenizer(tmp_path / name, ["x", "!"], special={"eos": "</s>"})
        write_json(tmp_path / name / "special_tokens_map.json", {"pad_token": "!"})
    vocabulary = read_vocabulary(tmp_path / "a")
    assert vocabulary.roles["pad"] == 2
    assert vocabulary.text[2] == b"!"
    overlap = match(vocabulary, read_vocabulary(tmp_path / "b"))
    assert overlap.rules == {"role": 1, "bytes": 2}


def test_an_added_token_that_the_model_has_too_is_read_like_its_pieces(tmp_path):
    write_tokenizer(tmp_path / "a", ["  "], "metaspace")
    tokenizer = read_json(tmp_path / "a" / "tokenizer.json")
    tokenizer["added_tokens"].append({"id": 1, "content": "▁▁", "special": False})
    write_json(tmp_path / "a" / "tokenizer.json", tokenizer)
    assert read_vocabulary(tmp_path / "a").text[1] == b"  "


def test_exact_is_the_papers_intersection_of_strings(tmp_path):
    write_tokenizer(tmp_path / "a", ["x", "z"], special={"bos": "<s>"})
    write_tokenizer(tmp_path / "b", ["x"], special={"bos": "<|begin|>", "pad": "z"})
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    overlap = match(old, new, "exact")
    assert overlap.source_of.tolist() == [-1, 2, 1]
    assert overlap.rules == {"exact": 2}


def test_a_special_token_is_never_taken_for_text(tmp_path):
    write_tokenizer(tmp_path / "a", ["</s>", "x"], special={"bos": "<s>"})
    write_tokenizer(tmp_path / "b", ["x"], special={"eos": "</s>"})
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert match(old, new).source_of.tolist() == [-1, 2]


def test_ids_without_a_token_are_neither_shared_nor_missing(tmp_path):
    write_tokenizer(tmp_path / "a", ["x", "y"])
    write_tokenizer(tmp_path / "b", ["x", "y"])
    tokenizer = read_json(tmp_path / "b" / "tokenizer.json")
    tokenizer["model"]["vocab"]["y"] = 5
    write_json(tmp_path / "b" / "tokenizer.json", tokenizer)
    overlap = match(read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b"))
    assert overlap.source_of.tolist() == [0, 1, -2, -2, -2, 2]
    assert overlap.unused.tolist() == [2, 3, 4]
    assert overlap.missing.tolist() == []


def test_source_ids_beyond_its_rows_are_not_shared(tmp_path):
    write_tokenizer(tmp_path / "a", ["x", "y"])
    vocabulary = read_vocabulary(tmp_path / "a")
    assert match(vocabulary, vocabulary, source_rows=2).source_of.tolist() == [0, 1, -1]


def test_added_tokens_of_every_file_are_read_as_plain_text(tmp_path):
    write_tokenizer(tmp_path / "a", ["x"])
    tokenizer = read_json(tmp_path / "a" / "tokenizer.json")
    tokenizer["added_tokens"].append({"id": 2, "content": "   ", "special": False})
    write_json(tmp_path / "a" / "tokenizer.json", tokenizer)
    settings = read_json(tmp_path / "a" / "tokenizer_config.json")
    settings["added_tokens_decoder"] = {"3": {"content": "<|user|>", "special": True}}
    write_json(tmp_path / "a" / "tokenizer_config.json", settings)
    write_json(tmp_path / "a" / "added_tokens.json", {"Ġ": 4})
    vocabulary = read_vocabulary(tmp_path / "a")
    assert vocabulary.text == (None, b"x", b"   ", None, "Ġ".encode())


def test_an_id_in_config_json_is_a_role_only_if_the_token_is_special(tmp_path):
    write_tokenizer(tmp_path / "a", ["x", "y"])
    settings = tmp_path / "a" / "tokenizer_config.json"
    settings.unlink()
    write_json(tmp_path / "a" / "config.json", {"bos_token_id": 1, "eos_token_id": [0, 2]})
    vocabulary = read_vocabulary(tmp_path / "a")
    assert vocabulary.roles == {"eos": 0}
    assert vocabulary.text[1] == b"x"


def test_tokens_are_described_by_what_they_stand_for(tmp_path):
    ids = write_tokenizer(tmp_path / "a", [" über", "\n"], "metaspace", byte_pieces=True)
    describe = read_vocabulary(tmp_path / "a").describe
    assert describe(ids["▁über"]) == "' über'"
    assert describe(ids["\n"]) == r"'\n'"
    assert describe(ids["<0xC3>"]) == "<0xC3>"
    assert describe(ids["</s>"]) == "</s>"


def test_a_role_whose_token_does_not_exist_is_told(tmp_path):
    write_tokenizer(tmp_path / "a", ["x"])
    write_json(tmp_path / "a" / "special_tokens_map.json", {"pad_token": "[PAD]"})
    assert read_vocabulary(tmp_path / "a").absent == {"pad": "[PAD]"}


def test_nothing_in_common_is_an_error_that_names_both(tmp_path):
    write_tokenizer(tmp_path / "a", ["x"], special={})
    write_tokenizer(tmp_path / "b", ["y"], special={})
    with pytest.raises(VocabularyError, match=r"a.tokenizer\.json and .*b.tokenizer\.json"):
        match(read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b"))


def test_the_byte_alphabet_is_that_of_the_tokenizers_library():
    assert set(BYTE_ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_ALPHABET.values()) == list(range(256))


@given(st.text(max_size=20))
@settings(deadline=None)
def test_byte_level_pieces_are_undone(text):
    read = piece_reader({"decoder": {"type": "ByteLevel"}})
    assert read(byte_level(text)) == text.encode()


def added(directory: Path, token: int, piece: str) -> None:
    tokenizer = read_json(directory / "tokenizer.json")
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": token, "content": piece, **flags})
    write_json(directory / "tokenizer.json", tokenizer)


def test_same_spelling_goes_before_lower_ids(tmp_path):
    """'A' is a piece and a byte in both; each goes to its own kind."""
    ids = write_tokenizer(tmp_path / "a", ["A"], "metaspace", byte_pieces=True)
    vocabulary = read_vocabulary(tmp_path / "a")
    overlap = match(vocabulary, vocabulary)
    assert overlap.source_of[[ids["A"], ids["<0x41>"]]].tolist() == [ids["A"], ids["<0x41>"]]


def test_an_added_token_goes_before_a_piece_that_never_comes_up(tmp_path):
    """GPT-NeoX has runs of spaces as pieces, and again as added tokens, which text is given."""
    write_tokenizer(tmp_path / "a", ["x", "  "])
    added(tmp_path / "a", 3, "  ")
    write_tokenizer(tmp_path / "b", ["  "])
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert old.text[2] == old.text[3] == b"  "
    library = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    assert library.encode("x  x").ids == [1, 3, 1]
    assert match(old, new).source_of.tolist() == [0, 3]
    assert match(old, old).source_of.tolist() == [0, 1, 2, 3]
    assert match(new, old).source_of.tolist() == [0, -1, 1, 1]


def test_fuzzy_finds_what_differs_by_case_or_a_space_and_only_where_bytes_do_not(tmp_path):
    write_tokenizer(tmp_path / "a", ["haus", " der", "Über", "x", "\n", "  y"])
    write_tokenizer(tmp_path / "b", [" Haus", "Der", "über", "x", " \n", " y", "z"])
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    overlap = match(old, new, "fuzzy")
    assert overlap.source_of.tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert overlap.rules == {"role": 1, "bytes": 1, "fuzzy": 3}
    assert overlap.fuzzy.tolist() == [1, 2, 3]
    assert overlap.shared.tolist() == [0, 1, 2, 3, 4]
    assert overlap.anchors.tolist() == [0, 4]


@pytest.mark.parametrize(
    ("words", "best"),
    [
        (["haus", " haus", "HAUS", "Haus"], "Haus"),
        (["haus", "HAUS", " haus"], " haus"),
        (["HAUS", "haus"], "HAUS"),
    ],
)
def test_fuzzy_prefers_the_case_then_the_space_then_the_lowest_id(words, best, tmp_path):
    write_tokenizer(tmp_path / "a", words)
    write_tokenizer(tmp_path / "b", [" Haus"])
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert match(old, new, "fuzzy").source_of.tolist() == [0, 1 + words.index(best)]


def test_fuzzy_takes_the_space_behind_a_word_for_one_before_it(tmp_path):
    write_tokenizer(tmp_path / "a", ["haus ", "haus"])
    write_tokenizer(tmp_path / "b", [" haus"])
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    assert match(old, new, "fuzzy").source_of.tolist() == [0, 1]


def test_fuzzy_leaves_special_tokens_and_bytes_alone(tmp_path):
    special = {"eos": "</s>", "mask": "[mask]"}
    write_tokenizer(tmp_path / "a", ["a", "é"], special=special)
    write_tokenizer(
        tmp_path / "b", ["[MASK]"], "metaspace", {"eos": "</s>", "pad": "[MASK]"}, byte_pieces=True
    )
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    overlap = match(old, new, "fuzzy")
    assert overlap.rules == {"role": 1, "bytes": 1, "fuzzy": 0}
    assert overlap.fuzzy.tolist() == []


def test_fuzzy_matches_alone_are_nothing_to_make_rows_from(tmp_path):
    write_tokenizer(tmp_path / "a", ["x"], special={})
    write_tokenizer(tmp_path / "b", ["X"], special={})
    with pytest.raises(VocabularyError, match="in common"):
        match(read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b"), "fuzzy")


@given(
    words=st.lists(st.text("ab AB", min_size=1, max_size=3), min_size=1, unique=True),
    data=st.data(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fuzzy_obeys_its_rules_on_any_words(tmp_path, words: list[str], data: st.DataObject):
    sources = data.draw(st.lists(st.sampled_from(words), unique=True))
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    write_tokenizer(tmp_path / "a", sources)
    write_tokenizer(tmp_path / "b", words)
    old, new = read_vocabulary(tmp_path / "a"), read_vocabulary(tmp_path / "b")
    strict, fuzzy = match(old, new), match(old, new, "fuzzy")
    for token, word in enumerate(words, start=1):
        found = int(fuzzy.source_of[token])
        if strict.source_of[token] >= 0:
            assert found == strict.source_of[token]
        elif found >= 0:
            assert sources[found - 1].strip().lower() == word.strip().lower() != ""


ORDINARY = st.text(min_size=1, max_size=8).filter(lambda text: "\u2581" not in text)


@given(ORDINARY)
@settings(deadline=None)
def test_every_family_reads_the_same_text_from_its_spelling(text):
    spelled = {
        "byte level": (BYTE_LEVEL, byte_level(text)),
        "sentencepiece": (SENTENCEPIECE, text.replace(" ", "\u2581")),
        "ends of words": ({"model": {"end_of_word_suffix": "</w>"}}, text),
        "CLIP": ({**BYTE_LEVEL, "model": {"end_of_word_suffix": "</w>"}}, byte_level(text)),
        "WordPiece": (WORD_PIECE, "##" + text),
    }
    for family, (tokenizer, piece) in spelled.items():
        if "</w>" not in text and not re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            assert piece_reader(tokenizer)(piece) == text.encode(), family


@given(ORDINARY)
@settings(deadline=None)
def test_every_family_reads_the_same_beginning_of_a_word(text):
    word = "x" + text
    assert piece_reader(BYTE_LEVEL)(byte_level(" " + word)) == b" " + word.encode()
    assert (
        piece_reader(SENTENCEPIECE)("\u2581" + word.replace(" ", "\u2581")) == b" " + word.encode()
    )
    assert piece_reader(WORD_PIECE)(word) == b" " + word.encode()


@pytest.mark.parametrize(
    ("tokenizer", "piece", "text"),
    [
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "ĠÃ¼", b" \xc3\xbc"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "_a", b" a"),
        ({"model": {"type": "WordPiece", "continuing_subword_prefix": "##"}}, "##en", b"en"),
        ({"model": {"type": "WordPiece"}}, "Haus", b" Haus"),
        ({"model": {"type": "WordPiece"}}, ",", b","),
        ({"model": {"type": "WordPiece"}}, "+", b"+"),
        ({"model": {"type": "WordPiece"}}, "€", " €".encode()),
        ({"model": {"type": "WordPiece"}}, "中", "中".encode()),
        ({"decoder": {"type": "Sequence", "decoders": None}}, "x", b"x"),
        ({"decoder": {"type": "Replace", "pattern": "x"}}, "x", b"x"),
        ({"decoder": {"type": "Metaspace", "replacement": 7}}, "▁x", b" x"),
        ({"decoder": {"type": "BPEDecoder", "suffix": ""}}, "ab</w>", b"ab "),
        ({"model": {"type": "BPE", "end_of_word_suffix": "</w>"}}, "haus</w>", b"haus "),
        ({"decoder": {"type": "ByteFallback"}}, "<0xC3>", b"\xc3"),
        ({"decoder": {"type": "Metaspace"}, "model": {"byte_fallback": True}}, "<0xC3>", b"\xc3"),
        ({"decoder": {"type": "Metaspace"}}, "<0xC3>", b"<0xC3>"),
        ({"decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}}, "▁a", b" a"),
        ({}, "▁a", "▁a".encode()),
    ],
)  # fmt: skip
def test_pieces_are_read_as_the_decoder_writes_them(tokenizer, piece, text):
    assert piece_reader(tokenizer)(piece) == text
