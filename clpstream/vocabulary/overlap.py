"""Which target tokens the source vocabulary has too, and under which id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from clpstream.errors import VocabularyError
from clpstream.vocabulary.tokens import Vocabulary

Match = Literal["bytes", "exact", "fuzzy"]
MISSING, UNUSED = -1, -2
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """For each target id its source id, or MISSING, or UNUSED where no token has the id.

    source_of: shape (target size,), int64.
    rules: how many shared tokens each rule found: "map", "role", "name", "bytes",
    "exact", "fuzzy".
    fuzzy: target ids of the shared tokens that the rule "fuzzy" found.
    """

    source_of: Ids
    rules: Mapping[str, int]
    fuzzy: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def shared(self) -> Ids:
        """Target ids of the tokens that both vocabularies have: their rows are copied."""
        return np.flatnonzero(self.source_of >= 0)

    @property
    def anchors(self) -> Ids:
        """Target ids of the shared tokens that missing ones are made from: all but fuzzy ones.

        The helper's row of ' Haus' and the source's row of 'haus' are not two rows of one token.
        Such pairs differ by case and space always in the same direction, and put one source row
        under several helper rows; what is learned from pairs would learn that too.
        """
        return np.setdiff1d(self.shared, self.fuzzy, assume_unique=True)

    @property
    def missing(self) -> Ids:
        """Target ids of the tokens that the source lacks."""
        return np.flatnonzero(self.source_of == MISSING)

    @property
    def unused(self) -> Ids:
        """Target ids that no token has."""
        return np.flatnonzero(self.source_of == UNUSED)


def match(
    source: Vocabulary,
    target: Vocabulary,
    rule: Match = "bytes",
    source_rows: int | None = None,
    mapped: Mapping[int, int] = MappingProxyType({}),
) -> Overlap:
    """Match two vocabularies.

    "bytes": special tokens by role, then by name; by name first where both vocabularies have both
    tokens, since base and chat models of one family may differ in roles alone. Other tokens by the
    bytes they stand for. Among source tokens with the same bytes, the one written the same way goes
    first, then an added token, then a real piece before a byte-fallback piece, then the lowest id.
    A token that never comes up in text, since an added token with the same bytes does, is matched
    only by one like it.
    "exact": plain equality of the strings, over all tokens, as in CLP-Transfer.
    "fuzzy": as "bytes"; then tokens still missing match a token that differs in case, or in a
    space at its beginning or else its end. One with the same case goes first, then one with the
    same space, then the lowest id.

    `mapped` goes before: source id, or MISSING, by target id.
    Source ids from `source_rows` on have no row, and match nothing. Raises VocabularyError if no
    token is shared, fuzzy matches aside.
    """
    if rule not in get_args(Match):
        raise VocabularyError(f"match is {rule!r}; it can be {', '.join(get_args(Match))}")
    limit = source.size if source_rows is None else min(source.size, source_rows)
    names = {piece: token for token, piece in enumerate(source.pieces[:limit]) if piece is not None}
    by_bytes = None if rule == "exact" else _ByBytes(source, target, names, limit)
    source_of = np.full(target.size, UNUSED, np.int64)
    counts: dict[str, int] = {}
    for token, piece in enumerate(target.pieces):
        if piece is None:
            continue
        if token in mapped:
            found, how = mapped[token], "map"
        elif by_bytes is None:
            found, how = names.get(piece, MISSING), "exact"
        else:
            found, how = by_bytes.find(token, piece)
        source_of[token] = found
        if found != MISSING:
            counts[how] = counts.get(how, 0) + 1
    if not counts:
        raise VocabularyError(
            f"{source.path} and {target.path} have no token in common: there is nothing to make "
            "rows from; check that both tokenizers are the right ones"
        )
    if rule != "fuzzy":
        return Overlap(source_of, counts)
    left = np.flatnonzero(source_of == MISSING).tolist()
    alike = _alike(source, target, [token for token in left if token not in mapped], limit)
    fuzzy = np.array(sorted(alike), np.int64)
    source_of[fuzzy] = [alike[token] for token in fuzzy.tolist()]
    return Overlap(source_of, {**counts, "fuzzy": len(alike)}, fuzzy)


class _ByBytes:
    def __init__(
        self, source: Vocabulary, target: Vocabulary, names: dict[str, int], limit: int
    ) -> None:
        self._source = source
        self._target = target
        self._names = names
        self._roles = {role: token for role, token in source.roles.items() if token < limit}
        self._by_text = source.ids_by_text(limit)
        self._target_special = {
            piece for piece, text in zip(target.pieces, target.text, strict=True) if text is None
        }
        self._hidden = {target.text[token] for token in target.added}

    def find(self, token: int, piece: str) -> tuple[int, str]:
        text = self._target.text[token]
        if text is None:
            return self._find_special(token, piece)
        first = self._by_text.get(text, MISSING)
        same_name = self._names.get(piece, MISSING)
        if first == MISSING and token in self._target.added and self._is_nameless(same_name):
            return same_name, "name"
        if same_name == MISSING or self._source.text[same_name] != text:
            return first, "bytes"
        comes_up = text not in self._hidden or token in self._target.added
        if comes_up and first in self._source.added:
            return first, "bytes"
        return same_name, "bytes"

    def _is_nameless(self, token: int) -> bool:
        """Whether a token of the source is special, but not for anything that has a name here."""
        known = token != MISSING and token not in self._source.roles.values()
        return known and self._source.text[token] is None

    def _find_special(self, token: int, piece: str) -> tuple[int, str]:
        same_name = self._names.get(piece, MISSING)
        is_special = same_name != MISSING and self._source.text[same_name] is None
        for role, own in self._target.roles.items():
            if own == token and role in self._roles:
                other = self._roles[role]
                if is_special and other != same_name and self._target_has(other):
                    return same_name, "name"  # both models know both: their roles just differ
                return other, "role"
        if is_special or same_name in self._source.added:
            return same_name, "name"
        return MISSING, "name"

    def _target_has(self, other: int) -> bool:
        """Whether a special token of the source is one of the target by name."""
        return self._source.pieces[other] in self._target_special


def _alike(
    source: Vocabulary, target: Vocabulary, missing: list[int], limit: int
) -> dict[int, int]:
    """Target id -> source id, for those of the missing tokens that one like them is found for."""
    wanted = {token: word for token in missing if (word := _word(target, token)) is not None}
    found: dict[str, list[int]] = {word.lower(): [] for word in wanted.values()}
    words: dict[int, str] = {}
    for token in range(limit):
        word = _word(source, token)
        if word is not None and word.lower() in found:
            found[word.lower()].append(token)
            words[token] = word

    def difference(token: int, other: int) -> tuple[bool, bool, int]:
        spaces = _has_space(target, token, wanted[token]) != _has_space(source, other, words[other])
        return words[other] != wanted[token], spaces, other

    return {
        token: min(others, key=lambda other: difference(token, other))
        for token, word in wanted.items()
        if (others := found[word.lower()])
    }


def _word(vocabulary: Vocabulary, token: int) -> str | None:
    """A token's text without a space before it, or else behind it; None if it is no whole text."""
    text = vocabulary.text[token]
    if text is None or vocabulary.falls_back(token):
        return None
    try:
        whole = text.decode()
    except UnicodeDecodeError:
        return None
    word = whole[1:] if whole.startswith(" ") else whole.removesuffix(" ")
    return None if word.isspace() or not word else word


def _has_space(vocabulary: Vocabulary, token: int, word: str) -> bool:
    return len(vocabulary.text[token] or b"") > len(word.encode())
