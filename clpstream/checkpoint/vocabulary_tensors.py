"""Which tensors of a checkpoint are indexed by token id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from clpstream.checkpoint.directory import Checkpoint
from clpstream.checkpoint.dtypes import FLOATS
from clpstream.checkpoint.names import (
    LAYER_PARTS,
    LAYER_STEMS,
    NEVER_VOCABULARY,
    VOCABULARY_NAMES,
    Role,
)
from clpstream.checkpoint.rows import TensorRows
from clpstream.checkpoint.safetensors_file import TensorSpan
from clpstream.errors import CheckpointError

_NUMBER = re.compile(r"\.\d+\.")
_LAYER = re.compile(rf"(?:^|\.)(?:{'|'.join(LAYER_STEMS)})\.\d+\.")
_COMPARED_BYTES = 32 << 20


@dataclass(frozen=True)
class VocabularyTensor:
    """A tensor whose axis 0 is indexed by token id: `rows` rows of `width` values."""

    span: TensorSpan
    role: Role

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def rows(self) -> int:
        return self.span.shape[0]

    @property
    def width(self) -> int:
        return prod(self.span.shape[1:])


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
    names = {span.name for span in checkpoint.tensors}
    for name in (*vocab_tensors, *pass_through):
        if name not in names:
            raise CheckpointError(
                f"{checkpoint.directory}: there is no tensor '{name}' in it; check the name"
            )
    for name in set(vocab_tensors) & set(pass_through):
        raise CheckpointError(f"'{name}' can't be both a --vocab-tensor and a --pass-through")
    found = known_vocabulary_tensors(checkpoint, vocab_tensors, pass_through)
    for tensor in found:
        _check_usable(tensor)
    embeddings = input_embeddings(checkpoint, found)
    lengths = {t.rows for t in found if t.role != "named by the user"} | {embeddings.rows}
    for tensor in found:
        if tensor.rows not in lengths:
            raise CheckpointError(
                f"{tensor.span}: its shape is {list(tensor.span.shape)}, and the vocabulary has "
                f"{embeddings.rows} rows on the first axis; check --vocab-tensor"
            )
        if abs(tensor.rows - embeddings.rows) > 0.1 * embeddings.rows:  # a few are no rarity
            raise CheckpointError(
                f"{tensor.span}: it is named like a vocabulary tensor, but has {tensor.rows} rows, "
                f"and '{embeddings.name}' has {embeddings.rows}; decide with --pass-through "
                f"{tensor.name}"
            )
    explained = {t.name for t in found} | set(pass_through)
    unexplained = [span for span in checkpoint.tensors if span.name not in explained]
    if embeddings.width in lengths:  # then a length says nothing, but for tables' first axis
        unexplained = [s for s in unexplained if len(s.shape) > 1 and s.shape[0] in lengths]
    _sweep(unexplained, lengths)
    return found


def known_vocabulary_tensors(
    checkpoint: Checkpoint,
    vocab_tensors: Collection[str] = (),
    pass_through: Collection[str] = (),
) -> tuple[VocabularyTensor, ...]:
    """The tensors that are vocabulary tensors by their name, or because the user says so."""
    roles = ((s, _role(s.name, vocab_tensors, pass_through)) for s in checkpoint.tensors)
    return tuple(VocabularyTensor(span, role) for span, role in roles if role is not None)


def input_embeddings(
    checkpoint: Checkpoint, tensors: Iterable[VocabularyTensor]
) -> VocabularyTensor:
    """The input embeddings among `tensors`: the first by name length, so a copy never wins.

    A tensor named by the user stands in where no name is known.

    Raises CheckpointError if there are none, or they are of a dtype that can't be combined.
    """
    by_length = sorted(tensors, key=lambda t: (len(t.name), t.name))
    found = [t for t in by_length if t.role == "input embeddings"]
    found = found or [t for t in by_length if t.role == "named by the user"]
    if not found:
        known = ", ".join(n for n, role in VOCABULARY_NAMES.items() if role == "input embeddings")
        raise CheckpointError(
            f"{checkpoint.directory}: no input embeddings found among its tensors (names known: "
            f"{known}); name those of a source with --vocab-tensor"
        )
    _check_usable(found[0])
    return found[0]


def input_embeddings_name(names: Iterable[str]) -> str | None:
    """The tensor that `input_embeddings` would find, as far as names tell."""
    found = (name for name in names if vocabulary_role(name) == "input embeddings")
    return min(found, key=lambda name: (len(name), name), default=None)


def is_tied(tensors: Collection[VocabularyTensor]) -> bool:
    """Whether the output head is the input embeddings: no head of its own, or equal bytes.

    Decided by the bytes and not by config.json, whose flag is often absent or wrong.
    """
    inputs = [t.span for t in tensors if t.role == "input embeddings"]
    heads = [t.span for t in tensors if t.role == "output head"]
    return all(any(_same_bytes(head, table) for table in inputs) for head in heads)


def vocabulary_role(name: str) -> Role | None:
    """What a tensor of this name is, as far as names tell: None for a pass-through tensor."""
    return next((r for entry, r in VOCABULARY_NAMES.items() if _matches(name, entry)), None)


def _role(name: str, vocab_tensors: Collection[str], pass_through: Collection[str]) -> Role | None:
    if name in pass_through:
        return None
    if name in vocab_tensors:
        return "named by the user"
    return vocabulary_role(name)


def _matches(name: str, entry: str) -> bool:
    return name == entry or name.endswith("." + entry)


def _sweep(spans: list[TensorSpan], lengths: set[int]) -> None:
    """Refuse a tensor that nothing explains and that may be indexed by token id."""
    kinds = Counter(_kind(span) for span in spans)
    for span in spans:
        in_a_layer = _LAYER.search(span.name) and (
            kinds[_kind(span)] > 1 or any(part in span.name for part in LAYER_PARTS)
        )
        if (
            lengths.isdisjoint(span.shape)
            or in_a_layer
            or any(_matches(span.name, entry) for entry in NEVER_VOCABULARY)
        ):
            continue
        decision = f"--pass-through {span.name}"
        if span.shape[0] in lengths:
            decision += f" or --vocab-tensor {span.name}"
        raise CheckpointError(
            f"{span}: its shape {list(span.shape)} has an axis as long as the vocabulary, and its "
            f"name is not known; decide with {decision}"
        )


def _kind(span: TensorSpan) -> tuple[str, tuple[int, ...]]:
    """Name without layer numbers, and shape: what layers have several of is the model's body."""
    return _NUMBER.sub(".#.", span.name), span.shape


def _check_usable(tensor: VocabularyTensor) -> None:
    span = tensor.span
    if span.dtype not in FLOATS:
        raise CheckpointError(
            f"{span}: a vocabulary tensor of dtype {span.dtype} can't be combined (it can be "
            f"{', '.join(FLOATS)}); use a checkpoint whose {tensor.role} are not quantised"
        )
    if not span.shape or 0 in span.shape:
        raise CheckpointError(f"{span}: shape {list(span.shape)} holds no rows")


def _same_bytes(a: TensorSpan, b: TensorSpan) -> bool:
    """Compared at evenly spaced rows if the tensors are large: trained heads differ everywhere."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    left, right = TensorRows(a), TensorRows(b)
    count = min(left.shape[0], max(1, _COMPARED_BYTES * left.shape[0] // a.length))
    rows = np.linspace(0, left.shape[0] - 1, count).astype(np.int64)
    return all(
        np.array_equal(left.words(part), right.words(part))
        for part in np.array_split(rows, 1 + count * a.length // left.shape[0] // (4 << 20))
    )
