"""Bytes on their way into a file: past the kernel's cache, where that is a disk's file system."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from clpstream.memory import share
from clpstream.output.copying import became_shorter, copy_range, write_all

_PAGE = mmap.PAGESIZE
_MOST_BYTES = 4 << 20
"""Of a buffer: enough to keep a fast disk busy."""

Done = Callable[[int], None]


class Stream(Protocol):
    """Writes into a file, from where it stands on."""

    def seek(self, offset: int) -> None:
        """Go on at another place, beyond what was written."""
        ...

    def write(self, data: bytes | memoryview) -> None: ...

    def copy(self, source: Path, offset: int, length: int, done: Done, *, shared: bool) -> None:
        """Bytes of another file. shared: the file system may share blocks in place of copying.

        Raises OutputError if the other file is too short.
        """
        ...

    def finish(self) -> None:
        """Write what is still in memory."""
        ...


@contextlib.contextmanager
def stream(path: Path, offset: int = 0) -> Iterator[Stream]:
    """Write into a file, which may be there already, from `offset` on.

    Several streams may write into one file, each into a range of its own. None of them syncs it.
    """
    with contextlib.ExitStack() as opened:
        cached = _open(path, os.O_CREAT, opened)
        direct = _open_direct(path, cached, opened)
        work = _Cached(cached) if direct is None else _Direct(cached, direct)
        work.seek(offset)
        yield work
        work.finish()


def buffer_bytes() -> int:
    """Memory that a stream takes."""
    return _PAGE * max(1, min(_MOST_BYTES, share(64)) // _PAGE)


def _open(path: Path, flags: int, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_WRONLY | flags, 0o666)
    opened.callback(os.close, fd)
    return fd


def _open_direct(path: Path, fd: int, opened: contextlib.ExitStack) -> int | None:
    """A descriptor that writes past the cache; None where that is not possible, or no gain.

    Network file systems, and those with devices of their own making (Btrfs, ZFS), may copy at the
    server, or share blocks: that is left to copy_file_range.
    """
    if not hasattr(os, "O_DIRECT") or not _on_disk(fd):
        return None
    try:
        return _open(path, os.O_DIRECT, opened)
    except OSError:
        return None


def _on_disk(fd: int) -> bool:
    """Whether a file's device is a disk, or a part of one: others have the major number 0."""
    return os.major(os.fstat(fd).st_dev) != 0


class _Cached:
    """Through the kernel's cache."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def seek(self, offset: int) -> None:
        os.lseek(self._fd, offset, os.SEEK_SET)

    def write(self, data: bytes | memoryview) -> None:
        write_all(self._fd, data)

    def copy(self, source: Path, offset: int, length: int, done: Done, *, shared: bool) -> None:
        copy_range(source, offset, length, self._fd, done, shared=shared)

    def finish(self) -> None:
        pass


class _Direct:
    """Whole pages by direct I/O, from a buffer that lies as the file's pages do.

    The kernel's own copies end in its cache, page by page: that takes a processor longer than
    making the rows of many a conversion, and pushes out what others keep there. A page that the
    range has in part, at its ends, goes through the cache: another stream may write its rest.
    """

    def __init__(self, cached: int, direct: int) -> None:
        self._cached = cached
        self._direct = direct
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._buffer = memoryview(mmap.mmap(-1, buffer_bytes(), flags=flags))
        self._page = 0  # where in the file the buffer begins
        self._begin = self._end = 0  # what it holds

    def seek(self, offset: int) -> None:
        self.finish()
        self._begin = self._end = offset % _PAGE
        self._page = offset - self._begin

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            count = min(len(view), len(self._buffer) - self._end)
            self._buffer[self._end : self._end + count] = view[:count]
            self._filled(count)
            view = view[count:]

    def copy(self, source: Path, offset: int, length: int, done: Done, *, shared: bool) -> None:
        with source.open("rb", buffering=0) as file:
            while length:
                room = self._buffer[self._end :][:length]
                count = os.preadv(file.fileno(), [room], offset)
                if count == 0:
                    raise became_shorter(source)
                self._filled(count)
                offset, length = offset + count, length - count
                done(count)

    def finish(self) -> None:
        whole, rest = -(-self._begin // _PAGE) * _PAGE, self._end // _PAGE * _PAGE
        if whole < rest:
            self._put(self._begin, whole)
            self._put_pages(whole, rest)
            self._put(rest, self._end)
        else:
            self._put(self._begin, self._end)
        self._begin = self._end

    def _filled(self, count: int) -> None:
        self._end += count
        if self._end == len(self._buffer):
            self.finish()
            self._page += self._end
            self._begin = self._end = 0

    def _put_pages(self, begin: int, end: int) -> None:
        while begin < end:
            try:
                count = os.pwrite(self._direct, self._buffer[begin:end], self._page + begin)
            except OSError as error:
                if error.errno != errno.EINVAL:  # larger blocks than pages, for one
                    raise
                count = 0
            begin += count
            if count % _PAGE or not count:
                break
        self._put(begin, end)

    def _put(self, begin: int, end: int) -> None:
        while begin < end:
            begin += os.pwrite(self._cached, self._buffer[begin:end], self._page + begin)
