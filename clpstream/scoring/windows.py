"""Documents that are longer than a model's context -> windows of tokens that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """The tokens from `begin` to `end` of document `document`; those from `scored` on count."""

    document: int
    begin: int
    scored: int
    end: int

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return self.end - self.begin


def windows(document: int, tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most `context` tokens over a document of `tokens` ones; each counts once.

    The first window counts as a whole. Every further one adds `stride` tokens (the last one may
    have fewer to add), each of which so has at least context - stride tokens before it. A stride
    of context - 1 is nearly what lm-evaluation-harness does (rolling windows that do not overlap),
    in which the first tokens of every window have next to no context; it costs half as much as the
    default here, half the context.

    1 <= stride < context.
    """
    end = min(context, tokens)
    if end:
        yield Window(document, 0, 0, end)
    while end < tokens:
        scored, end = end, min(end + stride, tokens)
        yield Window(document, end - context, scored, end)
