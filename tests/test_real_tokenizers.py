"""What the rules find between real tokenizers, where these are at hand beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from make import BYTES_WRITTEN, metaspace
from tokenizers import Tokenizer

from clpstream import match, read_vocabulary
from clpstream.vocabulary import Splitter

NAMES = ["gpt2", "o200k_base", "de/bpe-50k", "de/xlmr-unigram-50k", "ar/xlmr-unigram-50k"]
FOUND = {  # shared tokens by "exact", "bytes" and "fuzzy"
    ("gpt2", "o200k_base"): (42_874, 42_874, 58_518),
    ("gpt2", "de/bpe-50k"): (11_089, 11_091, 13_296),
    ("gpt2", "de/xlmr-unigram-50k"): (3_712, 7_764, 10_184),
    ("gpt2", "ar/xlmr-unigram-50k"): (1_421, 2_172, 2_329),
    ("o200k_base", "de/xlmr-unigram-50k"): (5_543, 16_959, 22_048),
    ("o200k_base", "ar/xlmr-unigram-50k"): (1_467, 9_309, 10_745),
    ("de/bpe-50k", "de/xlmr-unigram-50k"): (6_591, 21_403, 28_285),
    ("ar/xlmr-unigram-50k", "de/xlmr-unigram-50k"): (8_329, 8_329, 9_624),
}
TEXTS = [" Donaudampfschifffahrt", "Straße", " the", "كتاب", " 12,5 %", "x = [1]", " 🎉"]


def directory(name: str) -> Path:
    for parent in Path(__file__).resolve().parents:
        found = parent / "shared" / "data" / "tokenizers" / name
        if found.is_dir():
            return found
    pytest.skip(f"no tokenizer {name} here")


def library(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(directory(name) / "tokenizer.json"))


@pytest.mark.parametrize(("source", "target"), FOUND)
def test_what_each_rule_finds(source, target):
    old, new = read_vocabulary(directory(source)), read_vocabulary(directory(target))
    counts = [len(match(old, new, rule).shared) for rule in ("exact", "bytes", "fuzzy")]
    assert tuple(counts) == FOUND[source, target]


@pytest.mark.parametrize(("source", "target"), FOUND)
def test_every_pair_is_the_same_text_and_none_is_overlooked(source, target):
    """By spelling the target's texts as the source spells them."""
    old, new = library(source), library(target)
    overlap = match(
        read_vocabulary(directory(source)), vocabulary := read_vocabulary(directory(target))
    )
    for piece, token in new.get_vocab().items():
        text = vocabulary.text[token]
        if text is not None:
            there = old.token_to_id(spelled(text, "unigram" in source))
            assert overlap.source_of[token] == (-1 if there is None else there), piece


def spelled(text: bytes, unigram: bool) -> str:
    if unigram:  # it has no token for a part of a character, so U+FFFD finds none
        return metaspace(text.decode("utf-8", "replace"))
    return "".join(BYTES_WRITTEN[byte] for byte in text)


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_split_as_the_tokenizer_itself_splits_them(name):
    tokenizer, split = library(name), Splitter(read_vocabulary(directory(name)))
    for text in TEXTS:
        ids = split(text.encode(), space_before=True)
        own = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(own).strip()
        if decoded == text.strip() and 3 not in own:  # neither normalised nor unknown
            assert ids == own
