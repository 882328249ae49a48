"""The rows of the target's vocabulary tensors, from their origins and a prepared method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import FLOATS, TensorRows
from clpstream.origins import NO_ROW
from clpstream.output.shards import NewTensor
from clpstream.output.target_rows import target_rows
from clpstream.plan import Plan
from clpstream.transfer import Prepared, Selected, gathered, mean

_NEAREST_AT_ONCE = 64
"""Tokens whose heaviest anchors are looked for together: a method may go through all anchors."""


def new_rows(plan: Plan, prepared: Prepared, new: NewTensor) -> Iterator[npt.NDArray[Any]]:
    """The bytes of a vocabulary tensor of the target, in blocks of rows: see `target_rows`."""
    make = _combined_rows if new.tensor.span.dtype in FLOATS else _copied_rows
    for plane in range(new.tensor.planes):
        yield from make(plan, prepared, new, new.tensor.plane(plane))


def _combined_rows(
    plan: Plan, prepared: Prepared, new: NewTensor, source: TensorRows
) -> Iterator[npt.NDArray[Any]]:
    """The rows of one plane of a tensor."""
    origins = plan.origins
    anchors = Selected(source, origins.anchors)
    copied = _with_idle_rows(plan, new, source)
    made = [(origins.combined, prepared.rows(anchors))]
    if origins.pieces:
        groups = [_pieces(plan, new, group) for group in origins.pieces.values()]
        weights = [[1 / len(group)] * len(group) for group in groups]
        made.append((np.array(list(origins.pieces)), gathered(groups, weights, source)))
    rest = len(copied) > (copied >= 0).sum() + sum(len(tokens) for tokens, _ in made)
    filler = mean(anchors) if rest else np.zeros(source.shape[1])
    return target_rows(source, copied, made, filler.astype(np.float32))


def _copied_rows(
    plan: Plan, prepared: Prepared, new: NewTensor, source: TensorRows
) -> Iterator[npt.NDArray[Any]]:
    """The rows of a tensor of integers, which can't be combined: those of the heaviest anchors."""
    origins = plan.origins
    copied = _with_idle_rows(plan, new, source)
    tokens = origins.combined.tolist()
    for start in range(0, len(tokens), _NEAREST_AT_ONCE):
        some = range(start, min(start + _NEAREST_AT_ONCE, len(tokens)))
        for place, (anchors, _) in zip(some, prepared.nearest(some, 1), strict=True):
            copied[tokens[place]] = origins.anchors[anchors[0]] if len(anchors) else NO_ROW
    for token, pieces in origins.pieces.items():
        copied[token] = _pieces(plan, new, pieces)[0]
    copied[copied == NO_ROW] = origins.anchors[0]
    return target_rows(source, copied, [], np.zeros(source.shape[1], np.float32))


def _with_idle_rows(plan: Plan, new: NewTensor, source: TensorRows) -> npt.NDArray[np.int64]:
    """Source rows to copy, by target row: also for ids without a token, from the source's own
    such rows if they are finite, and for rows behind the vocabulary."""
    copied = np.concatenate([plan.origins.copied, np.arange(plan.base_rows, new.tensor.rows)])
    spare = plan.spare[source.finite(source.words(plan.spare))]
    if len(spare):
        copied[plan.origins.idle] = np.resize(spare, len(plan.origins.idle))
    return copied


def _pieces(plan: Plan, new: NewTensor, pieces: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a token's pieces whose mean row it gets.

    A model reads the last piece of a word where it knows the whole, and begins to write the word
    with its first.
    """
    if plan.pieces == "mean":
        return pieces
    return pieces[:1] if new.tensor.role in ("output head", "head bias") else pieces[-1:]
