"""How bytes that pass through get from file to file: linked, cloned, or copied in the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from clpstream.errors import OutputError

LinkMode = Literal["auto", "copy", "reflink", "hardlink"]
"""For whole shards that don't change.

auto: a clone where the file system has them, else a copy inside the kernel. copy: bytes of their
own on the disk. reflink: a clone, or an error. hardlink: the source's own file under a second name.
"""

_FICLONE = 0x40049409
_FIDEDUPERANGE = 0xC0189436
_COPY_BYTES = 64 << 20
"""Bytes per copy call: few calls, and an interrupt is still answered soon."""
_BUFFER_BYTES = 4 << 20
_UNSUPPORTED = (
    *(errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTSOCK),
    *(errno.ENOTTY, errno.EBADF),
)


def hard_link(source: Path, target: Path) -> None:
    """Give a file a second name. Raises OutputError where that is not possible."""
    try:
        os.link(source, target)
    except OSError as error:
        raise OutputError(
            f"{source}: no hard link to it can be made beside the output ({error.strerror}); "
            "choose another --link-mode"
        ) from None


def clone(source: Path, target: Path) -> bool:
    """Make `target` share the blocks of `source` until one of them is written to (FICLONE: Btrfs,
    XFS, bcachefs, OverlayFS on these). Whether the file system could; if not, `target` is empty."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return False
    return True


def may_clone(source: Path) -> bool:
    """Whether the file system of `source` could have clones; nothing is written. It is asked to
    share no bytes with no file (FIDEDUPERANGE), for which it needs what clones need, from Linux
    4.20 on."""
    with source.open("rb") as file:
        try:
            fcntl.ioctl(file.fileno(), _FIDEDUPERANGE, bytes(24))
        except OSError as error:
            return error.errno not in _UNSUPPORTED
    return True


def copy_range(
    source: Path,
    offset: int,
    length: int,
    target: int,
    progress: Callable[[int], None],
    *,
    shared: bool,
) -> None:
    """Copy bytes of a file to where the descriptor `target` stands.

    By copy_file_range, which file systems and servers may make cheap by sharing blocks (not if
    `shared` is false); else by sendfile, else through a buffer. Raises OutputError if the file is
    too short.
    """
    ways = (_copy_file_range, _sendfile, _read_write)[0 if shared else 1 :]
    with source.open("rb", buffering=0) as file:
        end = offset + length
        for copy in ways:
            while offset < end:
                count = copy(file.fileno(), target, offset, min(_COPY_BYTES, end - offset))
                if count == 0:  # this way does not work here, or no further
                    break
                offset += count
                progress(count)
    if offset < end:
        raise became_shorter(source)


def became_shorter(source: Path) -> OutputError:
    """The error for a file that ends before what was to be copied."""
    return OutputError(f"{source}: it became shorter while it was copied")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of it where the descriptor stands."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


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
    write_all(target, data)
    return len(data)


def _zero_if_unsupported(error: Exception) -> int:
    """0 where the system lacks the call or has it for other file systems only."""
    if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
        raise error
    return 0
