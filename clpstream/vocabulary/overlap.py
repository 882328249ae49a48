"""Which target tokens the source vocabulary has too, and under which id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from clpstream.errors import VocabularyError
from clpstream.vocabulary.pieces import is_byte_piece
from clpstream.vocabulary.tokenizer import Vocabulary

Match = Literal["bytes", "exact"]
MISSING, UNUSED = -1, -2


@dataclass(frozen=True)
class Overlap:
    """For each target id its source id, or MISSING, or UNUSED where no token has the id.

    source_of: shape (target size,), int64.
    rules: how many shared tokens each rule found: "role", "name", "bytes", "exact".
    """

    source_of: npt.NDArray[np.int64]
    rules: Mapping[str, int]

    @property
    def shared(self) -> npt.NDArray[np.int64]:
        """Target ids of the tokens that both vocabularies have: the anchors."""
        return np.flatnonzero(self.source_of >= 0)

    @property
    def is_missing(self) -> npt.NDArray[np.bool_]:
        """Shape (target size,): whether the source lacks the token."""
        missing: npt.NDArray[np.bool_] = self.source_of == MISSING
        return missing

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Target ids of the tokens that the source lacks."""
        return np.flatnonzero(self.is_missing)

    @property
    def unused(self) -> npt.NDArray[np.int64]:
        """Target ids that no token has."""
        return np.flatnonzero(self.source_of == UNUSED)


def match(
    source: Vocabulary,
    target: Vocabulary,
    rule: Match = "bytes",
    source_rows: int | None = None,
    mapped: Mapping[int, int] | None = None,
) -> Overlap:
    """Match two vocabularies.

    "bytes": special tokens by role, then by name; other tokens by the bytes they stand for. Among
    source tokens with the same bytes, the one written the same way goes first, then a real piece
    before a byte-fallback piece, then the lowest id.
    "exact": plain equality of the strings, over all tokens, as in CLP-Transfer.

    `mapped` goes before: source id, or MISSING, by target id.
    Source ids from `source_rows` on have no row, and match nothing. Raises VocabularyError if no
    token is shared.
    """
    if rule not in get_args(Match):
        raise VocabularyError(f"match is {rule!r}; it can be {', '.join(get_args(Match))}")
    limit = source.size if source_rows is None else min(source.size, source_rows)
    names = {piece: token for token, piece in enumerate(source.pieces[:limit]) if piece is not None}
    finder = _ByBytes(source, names, limit) if rule == "bytes" else _Exact(names)
    source_of = np.full(target.size, UNUSED, np.int64)
    counts: dict[str, int] = {}
    for token, piece in enumerate(target.pieces):
        if piece is None:
            continue
        if mapped is not None and token in mapped:
            found, how = mapped[token], "mapped"
        else:
            found, how = finder.find(target, token, piece)
        source_of[token] = found
        if found != MISSING:
            counts[how] = counts.get(how, 0) + 1
    if not counts:
        raise VocabularyError(
            f"{source.path} and {target.path} have no token in common: there is nothing to make "
            "rows from; check that both tokenizers are the right ones"
        )
    return Overlap(source_of, counts)


class _Exact:
    def __init__(self, names: dict[str, int]) -> None:
        self._names = names

    def find(self, target: Vocabulary, token: int, piece: str) -> tuple[int, str]:
        return self._names.get(piece, MISSING), "exact"


class _ByBytes:
    def __init__(self, source: Vocabulary, names: dict[str, int], limit: int) -> None:
        self._source = source
        self._names = names
        self._roles = {role: token for role, token in source.roles.items() if token < limit}
        self._by_text: dict[bytes, int] = {}
        for token in range(limit - 1, -1, -1):  # so that the lowest id stays
            text = source.text[token]
            if text is None:
                continue
            rival = self._by_text.get(text)
            if rival is None or not self._falls_back(token) or self._falls_back(rival):
                self._by_text[text] = token

    def find(self, target: Vocabulary, token: int, piece: str) -> tuple[int, str]:
        text = target.text[token]
        if text is None:
            return self._find_special(target, token, piece)
        same_name = self._names.get(piece, MISSING)
        if same_name != MISSING and self._source.text[same_name] == text:
            return same_name, "bytes"
        return self._by_text.get(text, MISSING), "bytes"

    def _find_special(self, target: Vocabulary, token: int, piece: str) -> tuple[int, str]:
        for role, own in target.roles.items():
            if own == token and role in self._roles:
                return self._roles[role], "role"
        same_name = self._names.get(piece, MISSING)
        if same_name != MISSING and self._source.text[same_name] is None:
            return same_name, "name"
        return MISSING, "name"

    def _falls_back(self, token: int) -> bool:
        return is_byte_piece(self._source.pieces[token] or "")
