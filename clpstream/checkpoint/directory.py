"""A checkpoint: a directory in Hugging Face layout, known by its config and its headers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clpstream.checkpoint.safetensors_file import Shard, TensorSpan, read_shard
from clpstream.checkpoint.torch_file import read_torch_file
from clpstream.errors import CheckpointError
from clpstream.inputs import read_json, read_json_if_there

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
_SAMPLE_BYTES = 65_536


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. Opening it costs its headers; no tensor is read.

    `index` is the content of the index of its shards, or None for a single-file checkpoint.
    """

    directory: Path
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    index: dict[str, Any] | None

    @property
    def tensors(self) -> Iterator[TensorSpan]:
        """All tensors, shard by shard, in the order of their data."""
        return (span for shard in self.shards for span in shard.tensors)


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Open a checkpoint directory: model.safetensors, or the shards that its index names.

    Where neither is there, the same for pytorch_model.bin.

    Raises CheckpointError for whatever keeps it from being read: see `read_shard` and
    `read_torch_file`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "no such directory"
        raise CheckpointError(f"{directory}: {what}; give the directory of a Hugging Face model")
    index: dict[str, Any] | None = None
    for single, index_file in ((SINGLE_FILE, INDEX_FILE), (TORCH_FILE, TORCH_INDEX_FILE)):
        if (directory / single).exists():
            names = [single]
            break
        if (directory / index_file).exists():
            index = read_json(directory / index_file)
            names = _shard_names(directory / index_file, index)
            break
    else:
        raise CheckpointError(f"{directory}: {_what_is_there_instead(directory)}")
    read = read_torch_file if single == TORCH_FILE else read_shard
    shards = tuple(read(directory / name) for name in names)
    _check_names(directory / index_file, shards, index)
    return Checkpoint(directory, read_json_if_there(directory / "config.json"), shards, index)


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 that tells checkpoints apart without reading them whole.

    It covers config.json, and of every shard its name, size, header, and the first and last 64 KiB
    of its data.
    """
    digest = hashlib.sha256()
    config = checkpoint.directory / "config.json"
    digest.update(config.read_bytes() if config.exists() else b"")
    for shard in checkpoint.shards:
        digest.update(f"\0{shard.path.name}\0{shard.size}\0".encode())
        with shard.path.open("rb") as file:
            file.seek(shard.header_start)
            digest.update(file.read(shard.data_start - shard.header_start + _SAMPLE_BYTES))
            file.seek(max(file.tell(), shard.size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _shard_names(where: Path, index: dict[str, Any]) -> list[str]:
    directory = where.parent
    kind = ".bin" if where.name == TORCH_INDEX_FILE else ".safetensors"
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{where}: it has no weight_map from tensor names to files; download it again"
        )
    if not isinstance(index.get("metadata", {}), dict):
        raise CheckpointError(f"{where}: its metadata is not an object; download it again")
    names: dict[str, None] = {}  # a large model has a hundred thousand tensors in few shards
    for name in weight_map.values():
        if isinstance(name, str) and name in names:
            continue
        plain = isinstance(name, str) and Path(name).name == name
        if not plain or not name.endswith(kind):
            raise CheckpointError(
                f"{where}: it names {name!r}, which is not a {kind[1:]} file in {directory}; use "
                "an index that belongs to its shards"
            )
        names[name] = None
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{where}: it names {name}, which is not in {directory}; download the missing shard"
            )
    return sorted(names)


def _check_names(where: Path, shards: tuple[Shard, ...], index: dict[str, Any] | None) -> None:
    home: dict[str, str] = {}
    for shard in shards:
        for span in shard.tensors:
            if span.name in home:
                raise CheckpointError(
                    f"{where.parent}: tensor '{span.name}' is in both {home[span.name]} and "
                    f"{shard.path.name}; download the model again"
                )
            home[span.name] = shard.path.name
    for name, file in (index or {}).get("weight_map", {}).items():
        if home.get(name) != file:
            raise CheckpointError(
                f"{where}: it says that tensor '{name}' is in {file}, which does "
                "not hold it; the index does not belong to these shards: download it again"
            )


def _what_is_there_instead(directory: Path) -> str:
    if any(directory.glob("*.safetensors")):
        return (
            f"safetensors files, but neither {SINGLE_FILE} nor {INDEX_FILE}; download the index, "
            "or rename a single file"
        )
    if any(directory.glob("*.bin")):
        return (
            f"PyTorch files, but neither {TORCH_FILE} nor {TORCH_INDEX_FILE}; download the index, "
            "or rename a single file"
        )
    return (
        f"no model in it (looked for {SINGLE_FILE}, {TORCH_FILE} and their index.json); give the "
        "directory of a Hugging Face model"
    )
