"""The sizes of vocabularies in config.json: of the language model, and of parts with their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from clpstream.checkpoint.names import VOCABULARY_SIZE
from clpstream.inputs import LANGUAGE_LEVELS

_NEAR = 0.1
"""Tables of one vocabulary may differ in length by this part: rows for images, or for a prompt."""


class Size(NamedTuple):
    """A size, its key, and the keys of the levels of config.json that lead to it."""

    path: tuple[str, ...]
    key: str
    value: int


def sizes_in(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Size]:
    """All sizes of vocabularies, a level's own first, then the language model's."""
    for key, value in config.items():
        if VOCABULARY_SIZE.fullmatch(key) and type(value) is int:
            yield Size(path, key, value)
    levels = [(key, value) for key, value in config.items() if isinstance(value, dict)]
    for key, level in sorted(levels, key=lambda level: level[0] not in LANGUAGE_LEVELS):
        yield from sizes_in(level, (*path, key))


def vocabulary_sizes(config: Mapping[str, Any]) -> list[int]:
    """All numbers of config.json that are sizes of vocabularies, the language model's first."""
    return [size.value for size in sizes_in(config)]


def stated_sizes(config: Mapping[str, Any]) -> list[int]:
    """What config.json says under vocab_size, of the language model itself."""
    own = _at(config, LANGUAGE_LEVELS)
    return [size.value for size in own if size.key == "vocab_size"]


def text_sizes(config: Mapping[str, Any]) -> list[int]:
    """Sizes that are of the model itself, not of a part with a vocabulary of its own."""
    return [size.value for size in _at(config, (*LANGUAGE_LEVELS, "encoder", "decoder"))]


def is_near(size: int, rows: int) -> bool:
    """Whether a size may be that of a vocabulary whose table has so many rows."""
    return abs(size - rows) <= _NEAR * rows


def vocabulary_size(config: Mapping[str, Any], rows: int) -> int:
    """How many of a table's rows are for the vocabulary, padding included.

    Some classes make tables longer than config.json's vocab_size by a number of their own, for
    images (mllama) or for prompts (cpmant).
    """
    if rows in vocabulary_sizes(config):
        return rows
    return next((size for size in stated_sizes(config) if 0 < size < rows), rows)


def _at(config: Mapping[str, Any], levels: Iterable[str]) -> list[Size]:
    """The sizes at the top of config.json, or at one of these levels just below."""
    paths = {(), *((level,) for level in levels)}
    return [size for size in sizes_in(config) if size.path in paths]
