"""The target is opened again before it is put in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clpstream.checkpoint import Checkpoint, open_checkpoint
from clpstream.errors import OutputError
from clpstream.output.shards import NewTensor, target_name


def verify(target: Path, source: Checkpoint, new: Mapping[str, NewTensor]) -> Checkpoint:
    """Check names, dtypes and shapes of the whole target, and that the safetensors library agrees.

    new: the vocabulary tensors by name; all other tensors are the source's. Returns the target.
    Raises OutputError; that would be a defect of clpstream, not of its input.
    """
    opened = open_checkpoint(target)
    written = {span.name: (span.dtype, span.shape) for span in opened.tensors}
    expected = {
        span.name: (span.dtype, new[span.name].shape if span.name in new else span.shape)
        for span in source.tensors
    }
    if written != expected:
        wrong = sorted(
            name for name in written | expected if written.get(name) != expected.get(name)
        )
        raise OutputError(f"{target}: written wrong: {', '.join(wrong)}; please report this")
    for shard in source.shards:
        name = target_name(shard)
        fault = _fault_by_the_library(target / name)
        made_here = name != shard.path.name
        if fault is not None and (made_here or _fault_by_the_library(shard.path) is None):
            raise OutputError(f"{name}: safetensors refuses it: {fault}; please report")
    return opened


def _fault_by_the_library(path: Path) -> str | None:
    """What the safetensors library, the independent reader of the format, has against a file.

    Versions of it differ in the dtypes they know.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            file.keys()
    except safetensors.SafetensorError as error:
        return str(error)
    return None
