"""Target shards on their way to the disk: threads copy what passes through, while rows are made."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clpstream.checkpoint import c_order_blocks
from clpstream.errors import OutputError
from clpstream.output.copying import LinkMode, clone, hard_link, may_clone
from clpstream.output.shards import NewTensor, StridedTensor, TargetShard
from clpstream.output.stream import buffer_bytes, stream
from clpstream.progress import Update

_COPIES_AT_ONCE = 2
"""Shards that are copied together: one hardly fills a fast disk, many make a slow one seek."""


def writing_bytes() -> int:
    """About how much memory `writing` takes: of the shards, and of a new tensor."""
    return (_COPIES_AT_ONCE + 1) * buffer_bytes()


def check_clones(shards: Sequence[TargetShard], output: Path) -> None:
    """Raise OutputError if a shard that passes through can't be cloned, as far as can be known
    before anything is written."""
    for shard in shards:
        if shard.original is not None and not may_clone(shard.original):
            raise _not_cloned(shard.original, output.absolute().parent)


@dataclass(frozen=True)
class Place:
    """Where a new tensor's bytes go: `offset` in the file `path`."""

    new: NewTensor
    path: Path
    offset: int


@contextlib.contextmanager
def writing(
    directory: Path, shards: Sequence[TargetShard], mode: LinkMode, progress: Update
) -> Iterator[Writing]:
    """Begin to write shards into a directory, and end with all of them whole and synced.

    In between, the caller gives the rows of the new tensors. Raises, at the next occasion, what a
    thread ran into: OutputError, or OSError if the disk does not take the bytes.
    """
    work = Writing(directory, shards, mode, progress)
    try:
        yield work
        work.finish()
    finally:
        work.stop()


class Writing:
    """See `writing`.

    new: what the caller is to write, each once.
    """

    def __init__(
        self, directory: Path, shards: Sequence[TargetShard], mode: LinkMode, progress: Update
    ) -> None:
        self._mode = mode
        self._progress = progress
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(_COPIES_AT_ONCE, thread_name_prefix="clpstream-copy")
        self.new = [place for shard in shards for place in _places(directory, shard)]
        self._tasks: list[Future[None]] = [
            # a thread sees no limit of memory but its own context's
            self._pool.submit(copy_context().run, self._pass_through, directory / shard.name, shard)
            for shard in shards
        ]

    def write(self, place: Place, blocks: Iterable[npt.NDArray[Any]]) -> None:
        """Write a new tensor's rows, block after block.

        Raises OutputError if they don't fill the tensor.
        """
        written = 0
        with stream(place.path, place.offset) as out:
            for block in blocks:
                self._raise_failure()
                out.write(block.data.cast("B"))
                written += block.nbytes
                self._report(block.nbytes)
        if written != place.new.length:
            name = place.new.tensor.name
            raise OutputError(f"{place.path}: {name}: {written} of {place.new.length} bytes")
        self._tasks.append(self._pool.submit(_sync, place.path))

    def finish(self) -> None:
        """Wait until all is on the disk."""
        for task in self._tasks:
            task.result()

    def stop(self) -> None:
        """End the threads, soon even where they are not done."""
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def _pass_through(self, path: Path, shard: TargetShard) -> None:
        """Write all of a shard but its new tensors, and fsync it."""
        if shard.original is not None and self._shared(shard.original, path, shard.linked):
            self._report(shard.size)
            return
        shared = self._mode != "copy"
        with stream(path) as out:
            out.write(shard.header)
            self._report(len(shard.header))
            for offset, part in shard.placed():
                if isinstance(part, NewTensor):
                    continue
                out.seek(offset)
                if isinstance(part, StridedTensor):
                    for block in c_order_blocks(part.span):
                        out.write(block.data.cast("B"))
                        self._report(block.nbytes)
                else:
                    out.copy(part.path, part.offset, part.length, self._report, shared=shared)
        _sync(path)

    def _shared(self, original: Path, path: Path, linked: bool) -> bool:
        """Whether the shard could be had without copying."""
        if linked:
            hard_link(original, path)
            return True
        if self._mode == "copy":
            return False
        if clone(original, path):
            _sync(path)
            return True
        if self._mode == "reflink":
            raise _not_cloned(original, path.parent.parent)
        return False

    def _report(self, done: int) -> None:
        if self._stopping.is_set():
            raise OutputError("stopped")
        with self._lock:  # bars are not made for several threads
            self._progress(done)

    def _raise_failure(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()


def _places(directory: Path, shard: TargetShard) -> Iterator[Place]:
    for offset, part in shard.placed():
        if isinstance(part, NewTensor):
            yield Place(part, directory / shard.name, offset)


def _not_cloned(original: Path, directory: Path) -> OutputError:
    return OutputError(
        f"{original}: it can't be cloned to {directory}: both must lie on one file system that can "
        "(Btrfs, XFS); choose another --link-mode"
    )


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
