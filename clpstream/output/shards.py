"""Target shards: planned from the source's headers, then written in one pass."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clpstream.checkpoint import (
    Checkpoint,
    Shard,
    TensorSpan,
    VocabularyTensor,
    c_order_blocks,
    header_bytes,
)
from clpstream.errors import CheckpointError, OutputError
from clpstream.progress import Update

_COPY_BYTES = 64 << 20
"""Bytes per copy call: few calls, and an interrupt is still answered soon."""
_BUFFER_BYTES = 4 << 20
_UNSUPPORTED = (
    errno.EXDEV,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.ENOTSOCK,
)


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
    """A shard to write: its header, then its parts one after the other."""

    name: str
    header: bytes
    parts: tuple[CopiedRange | StridedTensor | NewTensor, ...]

    @property
    def size(self) -> int:
        return len(self.header) + sum(part.length for part in self.parts)


def plan_shards(source: Checkpoint, new: Mapping[str, NewTensor]) -> tuple[TargetShard, ...]:
    """The target's shards: the source's, but for the tensors that are in `new` by name.

    Raises CheckpointError if two of the source's would get the same name.
    """
    shards = tuple(_plan_shard(shard, new) for shard in source.shards)
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


def write_shard(
    path: Path,
    shard: TargetShard,
    rows: Callable[[NewTensor], Iterator[npt.NDArray[Any]]],
    progress: Update,
) -> None:
    """Write a shard and fsync it. `rows` gives a vocabulary tensor's rows, block after block.

    Raises OutputError if the blocks don't fill the tensor, OSError if the disk does not take them.
    """
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), shard.header)
        progress(len(shard.header))
        for part in shard.parts:
            if isinstance(part, CopiedRange):
                _copy_range(part, file.fileno(), progress)
                continue
            written = 0
            if isinstance(part, StridedTensor):
                name, blocks = part.span.name, c_order_blocks(part.span)
            else:
                name, blocks = part.tensor.name, rows(part)
            for block in blocks:
                _write_all(file.fileno(), block.data.cast("B"))
                written += block.nbytes
                progress(block.nbytes)
            if written != part.length:
                raise OutputError(f"{path}: {name}: {written} of {part.length} bytes")
        os.fsync(file.fileno())


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


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def _copy_range(part: CopiedRange, target: int, progress: Update) -> None:
    """Copy inside the kernel where it can: copy_file_range, else sendfile, else by a buffer."""
    with part.path.open("rb", buffering=0) as file:
        offset, end = part.offset, part.offset + part.length
        for copy in (_copy_file_range, _sendfile, _read_write):
            while offset < end:
                count = copy(file.fileno(), target, offset, min(_COPY_BYTES, end - offset))
                if count == 0:  # this way does not work here, or no further
                    break
                offset += count
                progress(count)
    if offset < end:
        raise OutputError(f"{part.path}: it became shorter while it was copied")


def _copy_file_range(source: int, target: int, offset: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, offset_src=offset)
    except (AttributeError, OSError) as error:
        return _zero_if_unsupported(error)


def _sendfile(source: int, target: int, offset: int, count: int) -> int:
    try:
        return os.sendfile(target, source, offset, count)
    except (AttributeError, OSError) as error:
        return _zero_if_unsupported(error)


def _read_write(source: int, target: int, offset: int, count: int) -> int:
    data = os.pread(source, min(count, _BUFFER_BYTES), offset)
    _write_all(target, data)
    return len(data)


def _zero_if_unsupported(error: Exception) -> int:
    """0 where the system lacks the call or has it for other file systems only."""
    if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
        raise error
    return 0
