"""Target shards, planned from the source's headers: what they are made of, and where it lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

from clpstream.checkpoint import (
    Checkpoint,
    Shard,
    TensorSpan,
    VocabularyTensor,
    header_bytes,
)
from clpstream.errors import CheckpointError


@dataclass(frozen=True)
class CopiedRange:
    """Bytes that pass through: one or more adjacent tensors of the source."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class NewTensor:
    """A vocabulary tensor of the source that has `rows` rows in the target."""

    tensor: VocabularyTensor
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.tensor.span.shape)
        shape[self.tensor.axis] = self.rows
        return tuple(shape)

    @property
    def length(self) -> int:
        return self.tensor.span.length // self.tensor.rows * self.rows


@dataclass(frozen=True)
class StridedTensor:
    """A tensor that passes through, but does not lie in C order in the source."""

    span: TensorSpan

    @property
    def length(self) -> int:
        return self.span.length


@dataclass(frozen=True)
class TargetShard:
    """A shard to write: its header, then its parts one after the other.

    linked: whether it is to be the source's own file under a second name.
    """

    name: str
    header: bytes
    parts: tuple[CopiedRange | StridedTensor | NewTensor, ...]
    linked: bool = False

    @property
    def size(self) -> int:
        return len(self.header) + sum(part.length for part in self.parts)

    @property
    def original(self) -> Path | None:
        """The source's file that it is, byte for byte; None if it is another."""
        if self.header:
            return None
        (whole,) = self.parts
        assert isinstance(whole, CopiedRange)
        return whole.path

    def placed(self) -> Iterator[tuple[int, CopiedRange | StridedTensor | NewTensor]]:
        """Each part with its offset in the file."""
        offset = len(self.header)
        for part in self.parts:
            yield offset, part
            offset += part.length


def plan_shards(
    source: Checkpoint, new: Mapping[str, NewTensor], hard_links: bool = False
) -> tuple[TargetShard, ...]:
    """The target's shards: the source's, but for the tensors that are in `new` by name.

    hard_links: those that don't change are linked; but not where the source has a symbolic link,
    since what lies behind it is not the source's alone.

    Raises CheckpointError if two of the source's would get the same name.
    """
    shards = tuple(_plan_shard(shard, new) for shard in source.shards)
    if hard_links:
        shards = tuple(
            replace(shard, linked=shard.original is not None and not shard.original.is_symlink())
            for shard in shards
        )
    if len({shard.name for shard in shards}) < len(shards):
        names = ", ".join(shard.path.name for shard in source.shards)
        raise CheckpointError(
            f"{source.directory}: two of its shards would get the same name ({names}); rename one"
        )
    return shards


def target_name(shard: Shard) -> str:
    """The shard's file name in the target: the source's, whose .bin becomes .safetensors."""
    if shard.path.suffix != ".bin":
        return shard.path.name
    return re.sub("^pytorch_model", "model", shard.path.stem) + ".safetensors"


def _plan_shard(shard: Shard, new: Mapping[str, NewTensor]) -> TargetShard:
    name = target_name(shard)
    if name == shard.path.name and not any(span.name in new for span in shard.tensors):
        return TargetShard(name, b"", (CopiedRange(shard.path, 0, shard.size),))
    parts: list[CopiedRange | StridedTensor | NewTensor] = []
    described = []
    for is_new, run in groupby(shard.tensors, lambda span: span.name in new):
        spans = list(run)
        if is_new:
            made = [new[span.name] for span in spans]
            described += [(t.tensor.name, t.tensor.span.dtype, t.shape, t.length) for t in made]
            parts += made
        else:
            described += [(span.name, span.dtype, span.shape, span.length) for span in spans]
            parts += _passed(spans)
    return TargetShard(name, header_bytes(described, shard.metadata), tuple(parts))


def _passed(spans: list[TensorSpan]) -> list[CopiedRange | StridedTensor]:
    """Parts for tensors that pass through: adjacent ones are one range."""
    parts: list[CopiedRange | StridedTensor] = []
    for span in spans:
        last = parts[-1] if parts else None
        if span.strides is not None:
            parts.append(StridedTensor(span))
        elif isinstance(last, CopiedRange) and last.offset + last.length == span.offset:
            parts[-1] = replace(last, length=last.length + span.length)
        else:
            parts.append(CopiedRange(span.path, span.offset, span.length))
    return parts


def index_of(source: Checkpoint, new: Mapping[str, NewTensor]) -> dict[str, Any] | None:
    """The target's model.safetensors.index.json; None where the source has none.

    total_size is in bytes, total_parameters in elements. Where the source counts its parameters
    in a way of its own (packed weights), only the vocabulary tensors' part of it changes.
    """
    if source.index is None:
        return None
    total_size = sum(span.length for span in source.tensors)
    counted = sum(prod(span.shape) for span in source.tensors)
    metadata = dict(source.index.get("metadata") or {})
    stated = metadata.get("total_parameters")
    parameters = stated if type(stated) is int else counted
    for made in new.values():
        span = made.tensor.span
        parameters += prod(made.shape) - prod(span.shape)
        total_size += made.length - span.length
    metadata |= {"total_parameters": parameters, "total_size": total_size}
    weight_map = {
        span.name: target_name(shard) for shard in source.shards for span in shard.tensors
    }
    return {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
