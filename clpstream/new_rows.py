"""The rows of the target's vocabulary tensors, from their origins and a prepared method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import FLOATS, TensorRows
from clpstream.origins import NO_ROW
from clpstream.output.shards import NewTensor
from clpstream.output.target_rows import target_rows
from clpstream.plan import Plan
from clpstream.transfer import (
    Prepared,
    Rows,
    Selected,
    Table,
    blocks,
    gathered,
    lengths,
    mean,
    rows_together,
)

Outliers = dict[str, dict[int, float]]
"""By tensor: target tokens whose made row is longer than any anchor's, and by which factor."""
Side = Literal["input", "head", "beside"]
"""A table of the helper: what input embeddings follow, what a head does, and one that is beside the
first and only tells which tokens mean the same."""
_HEADS = ("output head", "head bias")
_LONGER = 1.001
"""Of the longest anchor's length; less may be rounding."""
_TOLD_AT_ONCE = 1 << 14
"""Tokens whose heaviest anchors are told in one list, which takes some hundred bytes of each."""


def new_rows(
    plan: Plan, prepared: Mapping[Side, Prepared], new: Sequence[NewTensor], outliers: Outliers
) -> Iterator[Iterator[npt.NDArray[Any]]]:
    """For each of the target's vocabulary tensors its bytes, in blocks of rows: see `target_rows`.
    Those of one are to be taken before the next.

    Made rows that are longer than any anchor's are added to `outliers`.
    """
    made = _made_rows(plan, prepared, new)
    stand_ins: npt.NDArray[np.int64] | None = None
    for one in new:
        if one.tensor.span.dtype in FLOATS:
            yield _combined(plan, one, made, outliers.setdefault(one.tensor.name, {}))
        else:
            if stand_ins is None:
                stand_ins = _stand_ins(plan, prepared["input"])
            yield _copied(plan, one, stand_ins)


def finite_words(plan: Plan, tables: Sequence[TensorRows]) -> npt.NDArray[np.int64]:
    """The source's frequent words, but for those whose rows are broken in one of the tables: the
    target may not need them."""
    finite = np.ones(len(plan.words), bool)
    for table in tables:
        for block in blocks(Selected(table, plan.words)):
            finite[block] &= table.finite(table.bits(plan.words[block]))
    return plan.words[finite]


def _made_rows(
    plan: Plan, prepared: Mapping[Side, Prepared], new: Iterable[NewTensor]
) -> Iterator[Rows]:
    """The combined tokens' rows in each plane of the tensors, one after the other; but for tensors
    of integers."""
    planes = [
        (one, plane) for one in new if one.tensor.span.dtype in FLOATS for plane in _planes(one)
    ]
    words = finite_words(plan, [plane for _, plane in planes])
    tables = [
        Table(
            prepared[side_of(prepared, one)],
            Selected(plane, plan.origins.anchors),
            Selected(plane, words),
        )
        for one, plane in planes
    ]
    if "beside" in prepared:
        plane = plan.source_embeddings.plane(0)
        anchors, known = Selected(plane, plan.origins.anchors), Selected(plane, words)
        tables.append(Table(prepared["beside"], anchors, known))
    return islice(rows_together(plan.method, tables), len(planes))


def _planes(new: NewTensor) -> list[TensorRows]:
    return [new.tensor.plane(plane) for plane in range(new.tensor.planes)]


def side_of(prepared: Mapping[Side, Prepared], new: NewTensor) -> Side:
    """Which of the helper's tables a tensor's rows follow: an output head the helper's, if it has
    its own."""
    return "head" if new.tensor.role in _HEADS and "head" in prepared else "input"


def _as_head(plan: Plan, new: NewTensor) -> bool:
    """Whether a tensor's rows are made as those of an output head are; not where it is a copy of
    the input embeddings, and has to stay one."""
    return new.tensor.role in _HEADS and not plan.tied


def _combined(
    plan: Plan, new: NewTensor, made: Iterator[Rows], outliers: dict[int, float]
) -> Iterator[npt.NDArray[Any]]:
    """The rows of a tensor. made: gives those of the combined tokens in each of its planes next."""
    for source in _planes(new):
        yield from _combined_rows(plan, new, source, next(made), outliers)


def _combined_rows(
    plan: Plan, new: NewTensor, source: TensorRows, rows: Rows, outliers: dict[int, float]
) -> Iterator[npt.NDArray[Any]]:
    """The rows of one plane of a tensor. rows: those of the combined tokens."""
    origins = plan.origins
    anchors = Selected(source, origins.anchors)
    copied = _with_idle_rows(plan, new, source)
    made: list[tuple[npt.NDArray[np.int64], Rows]] = [(origins.combined, rows)]
    if origins.pieces:
        groups = [_pieces(plan, new, group) for group in origins.pieces.values()]
        rows = gathered(groups, partial(_weights, plan, new), source)
        made.append((np.array(list(origins.pieces)), rows))
    rest = len(copied) > (copied >= 0).sum() + sum(len(tokens) for tokens, _ in made)
    filler = mean(anchors) if rest else np.zeros(source.shape[1])
    watch = _watching(_longest(anchors), outliers)
    return target_rows(source, copied, made, filler.astype(np.float32), watch)


def _watching(
    longest: float, found: dict[int, float]
) -> Callable[[npt.NDArray[np.int64], npt.NDArray[np.float32]], None]:
    """Notes which tokens' rows are longer than `longest`, and by which factor."""

    def watch(tokens: npt.NDArray[np.int64], rows: npt.NDArray[np.float32]) -> None:
        factors = lengths(rows) / longest
        for place in np.flatnonzero(factors > _LONGER):
            token, factor = int(tokens[place]), float(factors[place])
            found[token] = max(found.get(token, 0.0), factor)

    return watch


def _longest(anchors: Rows) -> float:
    """The length of the longest row."""
    return max((float(lengths(anchors[block]).max()) for block in blocks(anchors)), default=0.0)


def _stand_ins(plan: Plan, prepared: Prepared) -> npt.NDArray[np.int64]:
    """For each of the combined tokens the source row of its heaviest anchor, NO_ROW if it has none.

    That is what it gets where rows can't be combined.
    """
    count = len(plan.origins.combined)
    found = np.full(count, NO_ROW, np.int64)
    for start in range(0, count, _TOLD_AT_ONCE):
        some = range(start, min(start + _TOLD_AT_ONCE, count))
        for place, (anchors, _) in zip(some, prepared.nearest(some, 1), strict=True):
            if len(anchors):
                found[place] = plan.origins.anchors[anchors[0]]
    return found


def _copied(
    plan: Plan, new: NewTensor, stand_ins: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[Any]]:
    """The rows of a tensor of integers, which can't be combined."""
    origins = plan.origins
    for source in _planes(new):
        copied = _with_idle_rows(plan, new, source)
        copied[origins.combined] = stand_ins
        for token, pieces in origins.pieces.items():
            copied[token] = _pieces(plan, new, pieces)[0]
        copied[copied == NO_ROW] = origins.anchors[0]
        filler = np.zeros(source.shape[1], np.float32)
        yield from target_rows(source, copied, [], filler, lambda tokens, rows: None)


def _with_idle_rows(plan: Plan, new: NewTensor, source: TensorRows) -> npt.NDArray[np.int64]:
    """Source rows to copy, by target row: also for ids without a token, from the source's own
    such rows if they are finite, and for rows behind the vocabulary."""
    copied = np.concatenate([plan.origins.copied, np.arange(plan.base_rows, new.tensor.rows)])
    spare = plan.spare[source.finite(source.bits(plan.spare))]
    if len(spare):
        copied[plan.origins.idle] = np.resize(spare, len(plan.origins.idle))
    return copied


def _pieces(plan: Plan, new: NewTensor, pieces: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a token's pieces whose mean row it gets.

    A model reads the last piece of a word where it knows the whole, and begins to write the word
    with its first.
    """
    if plan.pieces != "ends":
        return pieces
    return pieces[:1] if _as_head(plan, new) else pieces[-1:]


def _weights(plan: Plan, new: NewTensor, count: int) -> list[float]:
    """Of a token's pieces: equal, or in output heads half as much for each after the first."""
    if plan.pieces == "first" and _as_head(plan, new):
        whole = 1 - 0.5**count
        return [0.5 ** (place + 1) / whole for place in range(count)]
    return [1 / count] * count
