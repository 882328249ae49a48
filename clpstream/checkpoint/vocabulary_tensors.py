"""Which tensors of a checkpoint are indexed by token id."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from clpstream.checkpoint.directory import Checkpoint
from clpstream.checkpoint.dtypes import FLOATS, INTEGERS
from clpstream.checkpoint.names import (
    NAMES_IF_AS_LONG,
    NEVER_VOCABULARY,
    VOCABULARY_NAMES,
    Role,
    entry_of,
    in_a_layer,
    vocabulary_role,
)
from clpstream.checkpoint.rows import TensorRows
from clpstream.checkpoint.safetensors_file import TensorSpan
from clpstream.checkpoint.sizes import (
    is_near,
    stated_sizes,
    text_sizes,
    vocabulary_size,
    vocabulary_sizes,
)
from clpstream.checkpoint.sweep import refuse_quantised, refuse_split, refuse_unexplained
from clpstream.errors import CheckpointError

_PADDED_TO = (8, 16, 32, 64, 128, 256)
"""Multiples to which tables of a vocabulary are made longer."""
_COMPARED_BYTES = 32 << 20
_NAMED = 5


@dataclass(frozen=True)
class VocabularyTensor:
    """A tensor whose `axis` is indexed by token id. `why`: what tells that it is one."""

    span: TensorSpan
    role: Role
    why: str
    axis: int = 0

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def rows(self) -> int:
        """How many token ids it has values for."""
        return self.span.shape[self.axis]

    @property
    def planes(self) -> int:
        """How many matrices of (rows, width) it consists of; more than 1 only if axis > 0."""
        return prod(self.span.shape[: self.axis])

    @property
    def width(self) -> int:
        """Values of one token id in one plane."""
        return prod(self.span.shape[self.axis + 1 :])

    def plane(self, index: int) -> TensorRows:
        """One of its matrices."""
        span, axis = self.span, self.axis
        strides = span.strides or tuple(prod(span.shape[a + 1 :]) for a in range(len(span.shape)))
        place = np.unravel_index(index, span.shape[:axis]) if axis else ()
        skipped = sum(int(at) * step for at, step in zip(place, strides, strict=False))
        part = replace(
            span,
            offset=span.offset + skipped * span.length // prod(span.shape),
            length=span.length // self.planes,
            shape=span.shape[axis:],
            strides=span.strides and span.strides[axis:],
        )
        return TensorRows(part)


def find_vocabulary_tensors(
    checkpoint: Checkpoint,
    vocab_tensors: Collection[str] = (),
    pass_through: Collection[str] = (),
) -> tuple[VocabularyTensor, ...]:
    """Find the vocabulary tensors: by name, then by a sweep over everything else.

    `vocab_tensors` and `pass_through` are tensor names that the user has decided; they go before
    both. Raises CheckpointError if there are no input embeddings, if a vocabulary tensor has a
    dtype that can't be combined, or if a tensor that no rule explains has an axis as long as the
    vocabulary: a wrong guess would be silent.
    """
    return embeddings_and_all(checkpoint, vocab_tensors, pass_through)[1]


def embeddings_and_all(
    checkpoint: Checkpoint,
    vocab_tensors: Collection[str] = (),
    pass_through: Collection[str] = (),
) -> tuple[VocabularyTensor, tuple[VocabularyTensor, ...]]:
    """What `input_embeddings` finds, and what `find_vocabulary_tensors` does, among which it is: a
    large checkpoint has 100,000 names, which take a second to be looked at."""
    names = {span.name for span in checkpoint.tensors}
    for name in (*vocab_tensors, *pass_through):
        if name not in names:
            raise CheckpointError(
                f"{checkpoint.directory}: there is no tensor '{name}' in it; check the name"
            )
    for name in set(vocab_tensors) & set(pass_through):
        raise CheckpointError(f"'{name}' can't be both a --vocab-tensor and a --pass-through")
    embeddings = input_embeddings(checkpoint, vocab_tensors, pass_through)
    found: list[VocabularyTensor] = []
    unexplained: list[TensorSpan] = []
    for span in checkpoint.tensors:
        by_user = span.name in vocab_tensors
        never = entry_of(span.name, NEVER_VOCABULARY) is not None
        never |= not span.shape and vocabulary_role(span.name) is not None  # a number has no rows
        if span.name in pass_through or (never and not by_user):
            continue
        tensor = _by_name(span, embeddings, by_user)
        if tensor is None:
            unexplained.append(span)
        elif by_user or _belongs(tensor, embeddings, checkpoint.config):
            _check_usable(tensor)
            found.append(tensor)
    for span in unexplained:
        refuse_quantised(span, wholes=names)
    lengths = {tensor.rows for tensor in found}
    padded = {-(-rows // many) * many for rows in lengths for many in _PADDED_TO}
    padded.update(stated_sizes(checkpoint.config))
    padded = {length for length in padded if is_near(length, embeddings.rows)}
    refuse_unexplained(unexplained, lengths, padded, embeddings.width, checkpoint.config)
    return embeddings, tuple(found)


def input_embeddings(
    checkpoint: Checkpoint,
    vocab_tensors: Collection[str] = (),
    pass_through: Collection[str] = (),
) -> VocabularyTensor:
    """The model's table of input embeddings; arguments as for `find_vocabulary_tensors`.

    Where several tables have such a name: the one as long as config.json's vocabulary, else the
    longest (a vision or speech part may have a small one), else the shortest name, so that a copy
    never wins. Where no name is sure: one given by the user, else one with a name that other
    tensors have too, if config.json confirms its length.

    Raises CheckpointError if there are none, or they are of a dtype that can't be combined.
    """
    spans = [
        span
        for span in checkpoint.tensors
        if span.name not in pass_through and entry_of(span.name, NEVER_VOCABULARY) is None
    ]
    tables = [s for s in spans if len(s.shape) > 1]
    sizes = vocabulary_sizes(checkpoint.config)

    def named(names: Mapping[str, Role], role: Role = "input embeddings") -> list[VocabularyTensor]:
        entries = {entry for entry, own in names.items() if own == role}
        return [
            VocabularyTensor(span, role, f"named like {entry}")
            for span in tables
            if (entry := entry_of(span.name, entries)) is not None
        ]

    found = (
        named(VOCABULARY_NAMES)
        or [_by_user(span, 0) for span in spans if span.name in vocab_tensors and span.shape]
        or [t for t in named(NAMES_IF_AS_LONG) if t.rows in sizes]
    )
    if not found:
        for span in spans:
            refuse_quantised(span)
            refuse_split(span)
        heads = named(VOCABULARY_NAMES, "output head")
        as_long = [s for s in tables if s.shape[0] in {head.rows for head in heads}]
        found = heads if len(as_long) == len(heads) else []  # a tied table may be stored as head
    if not found:
        long = [span.name for span in tables if not sizes or not {*sizes}.isdisjoint(span.shape)]
        some = ", ".join(long[:_NAMED]) + (", ..." if len(long) > _NAMED else "")
        raise CheckpointError(
            f"{checkpoint.directory}: no tensor in it has a name that input embeddings are known "
            f"to have; name those of a source with --vocab-tensor (as long as a vocabulary: "
            f"{some or 'none'})"
        )
    best = min(found, key=lambda t: (t.rows not in sizes[:1], -t.rows, len(t.name), t.name))
    _check_usable(best)
    return best


def input_embeddings_names(names: Iterable[str]) -> list[str]:
    """The tensors among which `input_embeddings` finds one, as far as names tell."""
    names = list(names)
    for known in (VOCABULARY_NAMES, NAMES_IF_AS_LONG):
        entries = {entry for entry, role in known.items() if role == "input embeddings"}
        if found := [name for name in names if entry_of(name, entries) is not None]:
            return found
    return [name for name in names if vocabulary_role(name) == "output head"]


def helper_tables_names(names: Iterable[str]) -> list[str]:
    """The tensors among which a helper's input embeddings and output head are."""
    names = list(names)
    heads = [name for name in names if vocabulary_role(name) == "output head"]
    return list(dict.fromkeys([*input_embeddings_names(names), *heads]))


def own_head(checkpoint: Checkpoint, embeddings: VocabularyTensor) -> VocabularyTensor | None:
    """A model's output head, if it has one that is not its input embeddings again.

    It is as long as they are, and as wide; of several (multi-token prediction), the one with the
    shortest name. None where there is none of a dtype that can be read: see `unread_heads`.
    """
    found = [
        VocabularyTensor(span, "output head", f"named like {entry}")
        for span, entry in _named_heads(checkpoint)
        if _like(span, embeddings)
    ]
    heads = [head for head in found if not same_bytes(head, embeddings)]
    return min(heads, key=lambda head: (len(head.name), head.name), default=None)


def unread_heads(checkpoint: Checkpoint, embeddings: VocabularyTensor) -> list[TensorSpan]:
    """Output heads of another shape than the input embeddings, or quantised."""
    return [span for span, _ in _named_heads(checkpoint) if not _like(span, embeddings)]


def _named_heads(checkpoint: Checkpoint) -> list[tuple[TensorSpan, str]]:
    """Matrices that are named like an output head, and the known name."""
    return [
        (span, entry)
        for span in checkpoint.tensors
        if (entry := entry_of(span.name, VOCABULARY_NAMES)) is not None
        and VOCABULARY_NAMES[entry] == "output head"
        and len(span.shape) > 1
    ]


def _like(span: TensorSpan, embeddings: VocabularyTensor) -> bool:
    return span.shape == (embeddings.rows, embeddings.width) and span.dtype in FLOATS


def is_tied(tensors: Collection[VocabularyTensor]) -> bool:
    """Whether the output head is the input embeddings: one of the two is not there, or equal bytes.

    Decided by the bytes and not by config.json, whose flag is often absent or wrong.
    """
    inputs = [t for t in tensors if t.role in ("input embeddings", "named by the user")]
    heads = [t for t in tensors if t.role == "output head"]
    return not inputs or all(any(same_bytes(head, t) for t in inputs) for head in heads)


def same_bytes(a: VocabularyTensor, b: VocabularyTensor) -> bool:
    """Whether two tensors hold the same: compared at evenly spaced rows if they are large, since
    trained heads differ everywhere."""
    if (a.span.dtype, a.span.shape, a.axis) != (b.span.dtype, b.span.shape, b.axis):
        return False
    count = min(a.rows, max(1, _COMPARED_BYTES * a.rows // a.span.length))
    ids = np.linspace(0, a.rows - 1, count).astype(np.int64)
    parts = np.array_split(ids, 1 + count * a.span.length // a.rows // (4 << 20))
    planes = [(a.plane(index), b.plane(index)) for index in range(a.planes)]
    return all(
        np.array_equal(left.bits(part), right.bits(part))
        for left, right in planes
        for part in parts
    )


def _by_name(
    span: TensorSpan, embeddings: VocabularyTensor, by_user: bool
) -> VocabularyTensor | None:
    """The tensor as a vocabulary tensor, if its name or the user says so."""
    axis = _vocabulary_axis(span, embeddings.rows)
    if by_user and axis is None:
        raise CheckpointError(
            f"{span}: its shape is {list(span.shape)}, and the vocabulary has {embeddings.rows} "
            "rows; check --vocab-tensor"
        )
    if (entry := entry_of(span.name, VOCABULARY_NAMES)) is not None:
        return VocabularyTensor(
            span, VOCABULARY_NAMES[entry], f"named like {entry}", 0 if axis is None else axis
        )
    entry = entry_of(span.name, NAMES_IF_AS_LONG)
    itself = span.name == embeddings.name
    if entry is not None and axis is not None and (itself or not in_a_layer(span.name)):
        why = f"named like {entry}, and as long as {embeddings.name}"
        if span.shape[axis] == embeddings.rows:
            return VocabularyTensor(span, NAMES_IF_AS_LONG[entry], why, axis)
        if not by_user:
            raise CheckpointError(
                f"{span}: its name may be that of an {NAMES_IF_AS_LONG[entry]}, but it has "
                f"{span.shape[axis]} rows, and '{embeddings.name}' has {embeddings.rows}; decide "
                f"with --pass-through {span.name} or --vocab-tensor {span.name}"
            )
    if by_user and axis is not None:
        return _by_user(span, axis)
    refuse_quantised(span)
    return None


def _by_user(span: TensorSpan, axis: int) -> VocabularyTensor:
    return VocabularyTensor(span, "named by the user", "named with --vocab-tensor", axis)


def _vocabulary_axis(span: TensorSpan, rows: int) -> int | None:
    """The axis indexed by token id: as long as the input embeddings, else nearly so."""
    exact = [axis for axis, length in enumerate(span.shape) if length == rows]
    near = [axis for axis, n in enumerate(span.shape) if is_near(n, rows)]
    return next(iter(exact + near), None)


def _belongs(
    tensor: VocabularyTensor, embeddings: VocabularyTensor, config: Mapping[str, Any]
) -> bool:
    """Whether a tensor with a vocabulary tensor's name is one of this vocabulary.

    Two tables of input embeddings have one length; a head may have a few rows less. A table of
    another vocabulary (a Q-Former's, of sound) is told by config.json, where the part that it
    belongs to has its size; but encoder and decoder are of one model.
    """
    same = tensor.rows in (embeddings.rows, vocabulary_size(config, embeddings.rows))
    near = is_near(tensor.rows, embeddings.rows)
    if same or (near and tensor.role != "input embeddings"):
        return True
    if in_a_layer(tensor.name) and not near:
        return False
    if tensor.rows in vocabulary_sizes(config):
        if tensor.role != "input embeddings" or tensor.rows not in text_sizes(config):
            return False
        raise CheckpointError(
            f"{tensor.span}: it has {tensor.rows} rows, and '{embeddings.name}' has "
            f"{embeddings.rows}: a model with two vocabularies, of which clpstream can't change "
            "one; take a model with one"
        )
    raise CheckpointError(
        f"{tensor.span}: it is named like a vocabulary tensor, but has {tensor.rows} rows, and "
        f"'{embeddings.name}' has {embeddings.rows}; decide with --pass-through {tensor.name}"
    )


def _check_usable(tensor: VocabularyTensor) -> None:
    span = tensor.span
    usable = INTEGERS if tensor.role == "expert routing" else FLOATS
    if span.dtype not in usable:
        raise CheckpointError(
            f"{span}: a vocabulary tensor of dtype {span.dtype} can't be combined (it can be "
            f"{', '.join(usable)}); use a checkpoint in which it is not quantised"
        )
    if not span.shape or 0 in span.shape:
        raise CheckpointError(f"{span}: shape {list(span.shape)} holds no rows")
