"""What no name explains: tensors that may be indexed by token id, and must not pass unseen."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NoReturn

from clpstream.checkpoint.names import (
    QUANTISED_PARTS,
    SPLIT_TABLES,
    VOCABULARY_SIZE,
    entry_of,
    in_a_layer,
    vocabulary_role,
)
from clpstream.checkpoint.safetensors_file import TensorSpan
from clpstream.errors import CheckpointError

_MOST_FUSED = 16
"""Sizes of a layer may be multiples of its width: of fused projections, of feed-forward parts."""


def refuse_unexplained(
    spans: list[TensorSpan],
    lengths: set[int],
    padded: set[int],
    width: int,
    config: Mapping[str, Any],
) -> None:
    """Raise CheckpointError for a tensor with an axis in `lengths`, unless it is a layer's own; and
    for one outside of layers whose first axis is in `padded`: lengths of a longer or shorter table
    of the same vocabulary.

    Layers may have sizes that are as long as the vocabulary by accident. Then config.json has the
    number, or it is a multiple of the model's width, or some layer's weights have it as their
    input and some as their output.
    """
    sizes = set(_other_numbers(config))
    padded = {length for length in padded - lengths - sizes if length % width}
    for span in spans:
        if span.shape[:1] and span.shape[0] in padded and not in_a_layer(span.name):
            _refuse(span, "about ")
    if width in lengths:  # then a length says nothing, but for tables' first axis
        spans = [span for span in spans if len(span.shape) > 1 and span.shape[0] in lengths]
    long = [span for span in spans if not lengths.isdisjoint(span.shape)]
    inside = [span for span in long if in_a_layer(span.name)]
    own = {
        length
        for length in lengths
        if length in sizes
        or (length % width == 0 and length <= _MOST_FUSED * width)
        or (
            any(span.shape[0] == length for span in inside)
            and any(length in span.shape[1:] for span in inside)
        )
    }
    for span in long:
        if in_a_layer(span.name) and lengths.intersection(span.shape) <= own:
            continue
        _refuse(span)


def _refuse(span: TensorSpan, about: str = "") -> NoReturn:
    refuse_quantised(span, wholes=())
    raise CheckpointError(
        f"{span}: its shape {list(span.shape)} has an axis {about}as long as the vocabulary, and "
        f"its name is not known; decide with --pass-through {span.name} or --vocab-tensor "
        f"{span.name}"
    )


def refuse_quantised(span: TensorSpan, wholes: Container[str] | None = None) -> None:
    """Raise CheckpointError for what stands in a quantised checkpoint in a table's place.

    wholes: names of the checkpoint's tensors; then it is refused whatever part of a table it is
    called, if the table is not among them.
    """
    parts = [part for part in QUANTISED_PARTS if span.name.endswith("." + part)]
    for part in parts or [span.name.rpartition(".")[2]]:
        whole = span.name.removesuffix(part) + "weight"
        missing = bool(parts) or (wholes is not None and whole not in wholes)
        if missing and whole != span.name and vocabulary_role(whole) is not None:
            raise CheckpointError(
                f"{span}: '{whole}' is quantised, and its rows can't be combined; use a checkpoint "
                "in which it is not"
            )


def refuse_split(span: TensorSpan) -> None:
    """Raise CheckpointError for one of two tables that hold the input embeddings together."""
    first = entry_of(span.name, SPLIT_TABLES)
    if first is not None:
        second = span.name.removesuffix(first) + SPLIT_TABLES[first]
        raise CheckpointError(
            f"{span}: the input embeddings are in two tables, this one and '{second}', and "
            "clpstream can only remake whole ones; save the model with a single table"
        )


def _other_numbers(config: Mapping[str, Any]) -> Iterator[int]:
    """Numbers of config.json that are neither sizes of vocabularies nor ids of tokens."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _other_numbers(value)
        elif type(value) is int and "token" not in key and not VOCABULARY_SIZE.fullmatch(key):
            yield value
