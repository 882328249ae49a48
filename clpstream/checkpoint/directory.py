"""A checkpoint: a directory in Hugging Face layout, known by its config and its headers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
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
WEIGHTS = ((SINGLE_FILE, INDEX_FILE), (TORCH_FILE, TORCH_INDEX_FILE))
"""A file with all tensors, or an index of several; the first that is there counts."""

Pick = Callable[[Iterable[str]], Collection[str]]
"""Which of a checkpoint's tensors are needed, if not all."""

_SAMPLE_BYTES = 65_536
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


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


def open_checkpoint(directory: str | Path, only: Pick | None = None) -> Checkpoint:
    """Open a checkpoint directory: model.safetensors, or the shards that its index names.

    Where neither is there, the same for pytorch_model.bin.
    only: opens just the shards with the tensors that it picks; the others need not be there.

    Raises CheckpointError for whatever keeps it from being read: see `read_shard` and
    `read_torch_file`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "no such directory"
        raise CheckpointError(f"{directory}: {what}; give the directory of a Hugging Face model")
    index: dict[str, Any] | None = None
    for single, index_file in WEIGHTS:
        if (directory / single).exists():
            names = [single]
            break
        if (directory / index_file).exists():
            index = read_json(directory / index_file)
            names = shard_names(directory / index_file, index, only)
            break
    else:
        raise CheckpointError(f"{directory}: {_what_is_there_instead(directory)}")
    for name in names if index is not None else ():
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{directory / index_file}: it names {name}, which is not in {directory}; download "
                "the missing shard"
            )
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


def shard_names(where: Path, index: dict[str, Any], only: Pick | None = None) -> list[str]:
    """Files that the index `where` names: all, or those with the tensors that `only` picks.

    Raises CheckpointError for an index that is none, or names files outside its directory.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{where}: it has no weight_map from tensor names to files; download it again"
        )
    if not isinstance(index.get("metadata", {}), dict):
        raise CheckpointError(f"{where}: its metadata is not an object; download it again")
    suffix = Path(where.name.removesuffix(".index.json")).suffix
    names: dict[str, None] = {}  # a large model has a hundred thousand tensors in few shards
    for name in weight_map.values():
        if isinstance(name, str) and name in names:
            continue
        plain = isinstance(name, str) and Path(name).name == name
        if not plain or not name.endswith(suffix):
            raise CheckpointError(
                f"{where}: it names {name!r}, which is not a {suffix} file in {where.parent}; use "
                "an index that belongs to its shards"
            )
        names[name] = None
    if only is None:
        return sorted(names)
    return sorted({weight_map[tensor] for tensor in only(weight_map)})


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
    opened = {shard.path.name for shard in shards}
    for name, file in (index or {}).get("weight_map", {}).items():
        if file in opened and home.get(name) != file:
            raise CheckpointError(
                f"{where}: it says that tensor '{name}' is in {file}, which does "
                "not hold it; the index does not belong to these shards: download it again"
            )


def _what_is_there_instead(directory: Path) -> str:
    for name in (name for pair in WEIGHTS for name in pair):
        if (directory / name).is_symlink():
            return f"{name} is a link to a file that does not exist; download the model again"
    if (directory / "adapter_model.safetensors").exists():
        return (
            "an adapter and no model; merge it into its model with PEFT's merge_and_unload, and "
            "save that"
        )
    found = sorted(path.name for path in directory.iterdir() if path.suffix in _SUFFIXES)
    if found:
        more = ", ..." if len(found) > 3 else ""
        return (
            f"it has {', '.join(found[:3])}{more}, but none of "
            f"{', '.join(WEIGHTS[0] + WEIGHTS[1])}; download the index, or rename a file that is "
            "the whole model"
        )
    return (
        f"no model in it (looked for {SINGLE_FILE}, {TORCH_FILE} and their index.json); give the "
        "directory of a Hugging Face model"
    )
