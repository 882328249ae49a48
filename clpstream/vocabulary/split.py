"""Text -> the tokens of a vocabulary that make it up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clpstream.errors import VocabularyError
from clpstream.vocabulary.files import TOKENIZER_FILE
from clpstream.vocabulary.tokens import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Splitter:
    """Splits texts into ordinary tokens of a vocabulary, whose bytes in a row are the text.

    Where the vocabulary comes from a tokenizer.json, as that tokenizer splits the text if it keeps
    it as it is; otherwise into the fewest tokens, of such splits the one with the longest first
    token, then the longest second one, and so on. Ids from `rows` on are not used.
    """

    def __init__(self, vocabulary: Vocabulary, rows: int | None = None) -> None:
        self._vocabulary = vocabulary
        self._rows = vocabulary.size if rows is None else min(rows, vocabulary.size)
        self._ids = vocabulary.ids_by_text(self._rows)
        self._longest = max(map(len, self._ids), default=0)
        self._tokenizer: Tokenizer | None = None

    def __call__(self, text: bytes, space_before: bool = False) -> list[int] | None:
        """The ids of the tokens; None if no tokens make up the text, or the text is empty.

        space_before: tokens that make up the text after a space will do, too: many tokenizers put
        one before a text. Raises VocabularyError if the tokenizers library can't read the file.
        """
        if not text:
            return None
        return self._own_split(text, space_before) or self._fewest(text)

    def _own_split(self, text: bytes, space_before: bool) -> list[int] | None:
        if self._vocabulary.path.name != TOKENIZER_FILE:
            return None
        try:
            whole = text.decode()
        except UnicodeDecodeError:
            return None
        accepted = {text, b" " + text} if space_before else {text}
        for written in dict.fromkeys((whole, whole.removeprefix(" "))):
            ids = self._encode(written)
            if self._bytes(ids) in accepted:
                return ids
        return None

    def _encode(self, text: str) -> list[int]:
        tokenizer = self._load()
        try:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception:  # of any text with an unknown part, where there is no unknown token
            return []

    def _bytes(self, ids: list[int]) -> bytes | None:
        texts = [self._vocabulary.text[token] if token < self._rows else None for token in ids]
        known = [text for text in texts if text is not None]
        return b"".join(known) if len(known) == len(ids) else None

    def _load(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._vocabulary.path)
        return self._tokenizer

    def _fewest(self, text: bytes) -> list[int] | None:
        # from each place to the end: how many tokens at least, and the longest first one of those
        fewest: dict[int, int] = {len(text): 0}
        length: dict[int, int] = {}
        for place in reversed(range(len(text))):
            for end in range(place + 1, min(place + self._longest, len(text)) + 1):
                if end in fewest and text[place:end] in self._ids:
                    count = fewest[end] + 1
                    if count <= fewest.get(place, count):
                        fewest[place], length[place] = count, end - place
        if 0 not in fewest:
            return None
        ids, place = [], 0
        while place < len(text):
            ids.append(self._ids[text[place : place + length[place]]])
            place += length[place]
        return ids


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, which gives all tokens of a text and no padding.

    Raises VocabularyError if the tokenizers library can't read it.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:
        # a panic of Rust, as of a damaged part, is no Exception, and its class can't be imported
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise VocabularyError(
            f"{path}: the tokenizers library can't read it ({error}); try a newer one: "
            "pip install --upgrade tokenizers"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
