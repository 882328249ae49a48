"""Temporary."""

from __future__ import annotations

from clpstream.vocabulary.tokenizer import Vocabulary


class Splitter:
    def __init__(self, vocabulary: Vocabulary, limit: int) -> None:
        pass

    def __call__(self, text: bytes, prefixed: bool = False) -> list[int] | None:
        return None
