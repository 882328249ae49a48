"""The target's shards are opened again before they are put in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clpstream.checkpoint import Checkpoint, TensorSpan, read_shard
from clpstream.errors import OutputError
from clpstream.output.shards import NewTensor, target_name


def verify(target: Path, source: Checkpoint, new: Mapping[str, NewTensor]) -> dict[str, TensorSpan]:
    """Check names, dtypes and shapes of the whole target, and that the safetensors library agrees.

    One shard after the other: a large model's headers take as much memory as its tokenizer.
    new: the vocabulary tensors by name; all other tensors are the source's. Returns where they lie
    in the target. Raises OutputError; that would be a defect of clpstream, not of its input.
    """
    found: dict[str, TensorSpan] = {}
    for shard in source.shards:
        name = target_name(shard)
        spans = {span.name: span for span in read_shard(target / name).tensors}
        written = {name: (span.dtype, span.shape) for name, span in spans.items()}
        expected = {
            span.name: (span.dtype, new[span.name].shape if span.name in new else span.shape)
            for span in shard.tensors
        }
        if written != expected:
            wrong = sorted(
                name for name in written | expected if written.get(name) != expected.get(name)
            )
            raise OutputError(f"{name}: written wrong: {', '.join(wrong)}; please report this")
        found |= {name: span for name, span in spans.items() if name in new}
        fault = _fault_by_the_library(target / name)
        made_here = name != shard.path.name
        if fault is not None and (made_here or _fault_by_the_library(shard.path) is None):
            raise OutputError(f"{name}: safetensors refuses it: {fault}; please report")
    return found


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
