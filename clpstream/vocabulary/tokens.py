"""A vocabulary: the tokens of a tokenizer, and what each stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clpstream.vocabulary.pieces import is_byte_piece


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer, by id.

    path: the file that lists them. kind: what sort of tokenizer it is, for people.
    pieces: the token as the tokenizer writes it; None where no token has the id. A file that gives
    bytes alone (tiktoken, tekken) is written as byte-level BPE writes them.
    text: the bytes that the token stands for; None for special tokens, which stand for no text.
    roles: ids of the special tokens that have a role (see ROLES).
    absent: roles whose token tokenizer_config.json names but no file gives an id.
    added: ids of tokens with text that are looked for before the text is split: a token of the
    tokenizer's model with the same text never comes up.
    notes: what is odd about the files, a sentence each.
    """

    path: Path
    kind: str
    pieces: tuple[str | None, ...]
    text: tuple[bytes | None, ...]
    roles: Mapping[str, int]
    absent: Mapping[str, str]
    added: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The largest id + 1: the rows that a vocabulary tensor needs."""
        return len(self.pieces)

    def __len__(self) -> int:
        """How many tokens there are; fewer than `size` if there are ids without one."""
        return sum(piece is not None for piece in self.pieces)

    def describe(self, token: int) -> str:
        """The token for people: what it stands for, or its name if it is special."""
        text = self.text[token]
        if text is None:
            return str(self.pieces[token])
        try:
            return repr(text.decode())
        except UnicodeDecodeError:  # a part of a character
            return "".join(f"<0x{byte:02X}>" for byte in text)

    def is_word(self, token: int) -> bool:
        """Whether the token has a letter: no symbol, number, space, special token or lone byte."""
        text = self.text[token]
        if text is None or self.falls_back(token):
            return False
        try:
            return any(character.isalpha() for character in text.decode())
        except UnicodeDecodeError:
            return False

    def words(self, rows: int | None = None) -> Iterator[int]:
        """The ids of words, of those below `rows` if given. Trainers give the low ids to frequent
        tokens."""
        return filter(self.is_word, range(self.size if rows is None else min(self.size, rows)))

    def falls_back(self, token: int) -> bool:
        """Whether the token is a byte that is used where no piece fits, such as `<0x0A>`."""
        text = self.text[token]
        return text is not None and len(text) == 1 and is_byte_piece(self.pieces[token] or "")

    def ids_by_text(self, rows: int) -> dict[bytes, int]:
        """The id for each text among the first `rows` ids.

        Of several tokens with the same text an added token goes first, since the others never come
        up; then a real piece before a byte-fallback piece; then the lowest id.
        """
        found: dict[bytes, int] = {}
        for token, text in enumerate(self.text[:rows]):
            if text is None:
                continue
            first = found.setdefault(text, token)
            if first != token and self._rank(token) < self._rank(first):
                found[text] = token
        return found

    def _rank(self, token: int) -> tuple[bool, bool]:
        return token not in self.added, self.falls_back(token)
