"""The safetensors header: where each tensor lies in a file.

The safetensors library gives no offsets and has no streaming writer, so this is clpstream's own
reader and writer of the header. It refuses what the library refuses, before any data is looked at.
Format: an unsigned little-endian 64-bit header length, that many bytes of JSON, then the data.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clpstream.checkpoint.dtypes import size_in_bits
from clpstream.errors import CheckpointError
from clpstream.inputs import refuse_lfs_pointer

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


@dataclass(frozen=True, slots=True)  # of which a large model has a hundred thousand
class TensorSpan:
    """A tensor on disk: `length` bytes at `offset` (from the start of the file) of `path`.

    strides: in elements, where the bytes do not lie in C order one after the other, as a torch
    file can have them. `length` is that of the C-ordered tensor all the same.
    """

    name: str
    path: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.path}: tensor '{self.name}'"


@dataclass(frozen=True)
class Shard:
    """One file of tensors: a safetensors file, or one of torch.save.

    What describes the tensors lies from `header_start` to `data_start`. `tensors` come in the
    order that their data has in a safetensors file; it fills such a file whole.
    """

    path: Path
    size: int
    data_start: int
    tensors: tuple[TensorSpan, ...]
    metadata: dict[str, str] | None
    header_start: int = 0


def read_shard(path: Path) -> Shard:
    """Read and check the header of a safetensors file; no tensor data is read.

    Raises CheckpointError, naming file and tensor, for a Git LFS pointer, a truncated file, a
    header that is too long or not JSON, and offsets that overlap, leave holes, run out of the
    file or don't fit dtype and shape.
    """
    try:
        refuse_lfs_pointer(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            _check_header_length(path, length, size)
            header = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None
    entries = _parse(path, header)
    metadata = _metadata(path, entries.pop("__metadata__", None))
    spans = [_span(path, name, entry, 8 + length) for name, entry in entries.items()]
    spans.sort(key=lambda span: (span.offset, span.length))
    _check_contiguous(path, spans, 8 + length, size)
    return Shard(path, size, 8 + length, tuple(spans), metadata)


def header_bytes(
    tensors: list[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str] | None
) -> bytes:
    """The start of a safetensors file, up to its data.

    `tensors` holds (name, dtype, shape, bytes) in the order of the data. The header is padded with
    spaces so that the data starts at a multiple of 8.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, dtype, shape, length in tensors:
        begin, end = end, end + length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _damaged(path: Path, fault: str) -> CheckpointError:
    return CheckpointError(f"{path}: {fault}; the file is damaged: download it again")


def _check_header_length(path: Path, length: int, size: int) -> None:
    if size < 8:
        raise _damaged(path, f"{size} bytes are too few for a safetensors file")
    if length > MAX_HEADER_BYTES:
        raise _damaged(
            path, f"its header of {length} bytes is over the format's limit of {MAX_HEADER_BYTES}"
        )
    if 8 + length > size:
        raise _damaged(path, f"truncated: its header ends at byte {8 + length} of {size}")


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise _damaged(path, f"its header has '{twice}' twice")
        return entries

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        entries = json.loads(
            header.decode(), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid JSON: {error}") from None
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not a JSON object")
    return entries


def _metadata(path: Path, metadata: Any) -> dict[str, str] | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "__metadata__ in its header does not map strings to strings")
    return metadata


def _span(path: Path, name: str, entry: Any, data_start: int) -> TensorSpan:
    def sizes(key: str) -> tuple[int, ...]:
        values = entry.get(key)
        if not isinstance(values, list) or not all(_is_size(value) for value in values):
            raise _damaged(path, f"tensor '{name}': its {key} is not a list of sizes")
        return tuple(values)

    if not name.isascii() and name != name.encode("utf-8", "replace").decode():
        raise _damaged(path, f"tensor {name!a}: its name is not Unicode")
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise _damaged(path, f"tensor '{name}': its header entry has no dtype")
    shape, offsets = sizes("shape"), sizes("data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"tensor '{name}': data_offsets {list(offsets)} are no range")
    begin, end = offsets
    bits = size_in_bits(entry["dtype"], shape)
    if bits is not None and bits != 8 * (end - begin):
        raise _damaged(
            path,
            f"tensor '{name}': {entry['dtype']} {list(shape)} takes {bits} bits, its data_offsets "
            f"give {end - begin} bytes",
        )
    return TensorSpan(name, path, data_start + begin, end - begin, entry["dtype"], shape)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _check_contiguous(path: Path, spans: list[TensorSpan], data_start: int, size: int) -> None:
    end = data_start
    for span in spans:
        if span.offset != end:
            fault = "overlaps the tensor before it" if span.offset < end else "leaves a hole"
            raise _damaged(
                path,
                f"tensor '{span.name}': its data starts at {span.offset - data_start}, which "
                f"{fault} (expected {end - data_start})",
            )
        end += span.length
        if end > size:
            raise _damaged(path, f"truncated: tensor '{span.name}' ends at byte {end} of {size}")
    if end < size:
        raise _damaged(path, f"{size - end} bytes after the last tensor belong to none")
