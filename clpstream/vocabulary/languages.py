"""Whether words mean the same in two vocabularies, as far as the vocabularies themselves tell."""

from __future__ import annotations

import unicodedata
from itertools import islice

import numpy as np
import numpy.typing as npt

from clpstream.vocabulary.tokens import Vocabulary

Ids = npt.NDArray[np.int64]

_MOST = 0.65
"""Part of a vocabulary's frequent words that one of the same language has, at least: 0.9 where both
have that language only, 0.7 where one has many, where two languages share 0.56 at most."""
_LOOKED_AT = 10_000
"""Words, the most frequent first, among which those of each script are looked for."""
_FREQUENT = 3_000
"""Of a script: other words are frequent in one tokenizer's text, and not in another's."""
_FEWEST = 100
"""Of a script that a vocabulary is made for: of others, most have single letters."""


def of_another_language(
    source: Vocabulary, target: Vocabulary, source_of: Ids, words: Ids
) -> npt.NDArray[np.bool_]:
    """Which of some target words (n,) may be of another language than they are in the source.

    source_of: (target ids,) the source token that is the same, or a negative number. Words of one
    script are of one language where one of the vocabularies has most of the frequent words that the
    other one has in it: so the Latin words of a Russian vocabulary are English where an English one
    has most of them, and strangers to a German one. Of a script that the target is not made for,
    its helper knows less than the source.
    """
    shared = np.flatnonzero(source_of >= 0)
    theirs, ours = _frequent_words(source), _frequent_words(target)
    others = {
        script
        for script, tokens in ours.items()
        if len(tokens) >= _FEWEST
        and _part(tokens, shared) < _MOST
        and _part(theirs.get(script, []), source_of[shared]) < _MOST
    }
    return np.array([_script(target, token) in others for token in words.tolist()], bool)


def _part(frequent: list[int], known: Ids) -> float:
    """That of a vocabulary's words which the other one has; 0 of a few letters."""
    return float(np.isin(frequent, known).mean()) if len(frequent) >= _FEWEST else 0.0


def _frequent_words(vocabulary: Vocabulary) -> dict[str, list[int]]:
    """By script."""
    found: dict[str, list[int]] = {}
    for token in islice(vocabulary.words(), _LOOKED_AT):
        found.setdefault(_script(vocabulary, token), []).append(token)
    return {script: tokens[:_FREQUENT] for script, tokens in found.items()}


def _script(vocabulary: Vocabulary, word: int) -> str:
    """That of its first letter: the first word of the character's name, such as CYRILLIC."""
    text = (vocabulary.text[word] or b"").decode()
    letter = next(character for character in text if character.isalpha())
    return unicodedata.name(letter, "").partition(" ")[0]
