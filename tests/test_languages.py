"""Which words two vocabularies have since they are made for one language."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clpstream import Vocabulary
from clpstream.vocabulary import of_another_language


def vocabulary(*words: str) -> Vocabulary:
    text = tuple(word.encode() for word in words)
    return Vocabulary(Path("tokenizer.json"), "a test's", tuple(words), text, {}, {})


def told(source: list[str], target: list[str]) -> set[str]:
    """The shared words that are of one language."""
    place = {word: token for token, word in enumerate(source)}
    source_of = np.array([place.get(word, -1) for word in target])
    words = np.flatnonzero(source_of >= 0)
    others = of_another_language(vocabulary(*source), vocabulary(*target), source_of, words)
    return {target[token] for token in words[~others]}


def words(letter: str, count: int) -> list[str]:
    return [f" {letter}{number}" for number in range(count)]


@pytest.mark.parametrize("part, one_language", [(0.5, False), (0.6, False), (0.7, True), (1, True)])
@pytest.mark.parametrize("larger", ["source", "target"])
def test_one_vocabulary_has_most_of_the_other_s_words(part, one_language, larger):
    """The other one may have many more, as one of many languages has."""
    shared = words("a", round(400 * part))
    small, large = [*shared, *words("b", 400 - len(shared))], [*shared, *words("c", 2000)]
    source, target = (large, small) if larger == "source" else (small, large)
    assert told(source, target) == (set(shared) if one_language else set())


def test_each_script_is_told_by_its_own_words():
    latin, cyrillic, greek = words("a", 300), words("ж", 300), words("λ", 300)
    source = [*latin, *cyrillic[:100], *words("в", 300), *greek]
    target = [*latin, *cyrillic, *words("δ", 2000), *greek]
    assert told(source, target) == {*latin, *greek}


def test_letters_alone_tell_nothing():
    """They are the source's own if the target is not made for their script."""
    letters, alphabet = words("ж", 90), words("a", 300)
    assert told([*alphabet, *letters], [*letters, *words("в", 400)]) == set()
    assert told([*alphabet, *letters, *words("в", 400)], [*alphabet, *letters]) == {
        *alphabet,
        *letters,
    }
    assert told([*alphabet, *letters[:30]], [*words("b", 300), *letters]) == set(letters[:30])


def test_frequent_words_tell_more_than_rare_ones():
    """Two tokenizers of one language choose other rare words."""
    shared = words("a", 2500)
    assert told([*shared, *words("b", 8000)], [*shared, *words("c", 8000)]) == set(shared)
    assert told([*words("b", 8000), *shared], [*words("c", 8000), *shared]) == set()
