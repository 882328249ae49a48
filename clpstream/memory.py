"""How much memory a run may take above the interpreter and its libraries, and how much disk.

Whatever is made in blocks asks `share` for its part of the limit, so that one number bounds all.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath

from clpstream.errors import TransferError

DEFAULT = 512 << 20
LEAST = 32 << 20
"""Bytes with which a run gets along at best: headers, tokenizers and code take about as much."""


@dataclass(frozen=True)
class _Limits:
    """See `limited_to`."""

    limit: int = DEFAULT
    lean: bool = False
    reserved: int = 0


_USUAL = _Limits()
_LIMITS = ContextVar("limits", default=_USUAL)

_STEP = 16 << 20
"""Bytes in which what the system leaves is counted, so that it is the same from run to run."""
_MMAP_THRESHOLD = -3
"""glibc's parameter of that name, in malloc.h."""
_LARGE = 256 << 10

_GROUPS = {
    "": ("sys/fs/cgroup", "memory.max"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
}
"""Where Linux says how much memory the control groups of a process may have, by the name that
/proc/self/cgroup has for them: version 2, and version 1."""


@contextlib.contextmanager
def limited_to(limit: int, *, lean: bool = False, reserved: int = 0) -> Iterator[None]:
    """Within this context, blocks are sized for `limit` bytes in all, `lean` is what it is, and
    `reserved` bytes of the disk are the target's."""
    token = _LIMITS.set(_Limits(limit, lean, reserved))
    try:
        yield
    finally:
        _LIMITS.reset(token)


def fitting(
    needed: Callable[[], int], limit: int, allowed: int, reserved: int = 0
) -> contextlib.AbstractContextManager[None]:
    """A context in which what is `needed` there is no more than is allowed: by smaller blocks than
    `limit` has, or where these don't help, the slower ways of taking less; the least there is if
    none does.

    Blocks follow from the limit, not from the memory that was measured, which is a little more or
    less each time: sums that are made block by block are the same from run to run.
    """
    limits = [max(LEAST, limit)]
    while limits[-1] > LEAST:
        limits.append(max(LEAST, limits[-1] * 3 // 4))
    for slower, tried in product((False, True), limits):
        with limited_to(tried, lean=slower, reserved=reserved):
            if needed() <= allowed:
                break
    return limited_to(tried, lean=slower, reserved=reserved)


def max_memory() -> int:
    """The limit in bytes."""
    return _LIMITS.get().limit


def lean() -> bool:
    """Whether to take less memory where blocks alone don't help, and more time."""
    return _LIMITS.get().lean


def free_scratch() -> int:
    """Bytes that are free for files in `scratch_directory` and not the target's, should it come to
    lie on the same disk."""
    with contextlib.suppress(OSError):
        free = os.statvfs(scratch_directory())
        return max(0, free.f_bavail * free.f_frsize - _LIMITS.get().reserved)
    return 0


def scratch_directory() -> str:
    """For large temporary files: TMPDIR, or /var/tmp before /tmp, which may be memory."""
    large = Path("/var/tmp")
    if "TMPDIR" not in os.environ and os.access(large, os.W_OK):
        return str(large)
    return tempfile.gettempdir()


def share(parts: int) -> int:
    """One of `parts` equal parts of the limit, in bytes."""
    return max(1, _LIMITS.get().limit // parts)


def block_bytes() -> int:
    """Size of the float32 blocks in which matrices are read and made: nearly 16 MiB by default."""
    return share(32)


def allowed_memory(root: Path = Path("/")) -> int:
    """What this process may have at most, in bytes: the machine's memory, or less where its control
    groups (its container) have less. Beyond that, the kernel kills."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            path = PurePosixPath(group.strip("/"))
            for controller in _GROUPS.keys() & controllers.split(","):
                mount, name = _GROUPS[controller]
                # those above count too; from within a container, only the topmost is seen
                for place in (path, *path.parents):
                    with contextlib.suppress(OSError, ValueError):
                        limits.append(int((root / mount / place / name).read_text()))
    return min(limits)


def room_above(taken: int) -> int:
    """Bytes that this process may still take, beyond the `taken` that it has."""
    return max(0, allowed_memory() - taken) // _STEP * _STEP


def check_limit(max_memory: int | None) -> None:
    """Raises TransferError for what is no number of bytes."""
    if max_memory is not None and (type(max_memory) is not int or max_memory < 1):
        raise TransferError(
            f"max_memory is {max_memory!r}; it must be a number of bytes from 1 up, as 512 << 20"
        )


def allowance(max_memory: int | None, room: int) -> tuple[int, int]:
    """Bytes that blocks are sized for, and bytes that a run may take in all, of a `room` that there
    is: the same if `max_memory` is given, else no more than `DEFAULT` and all of the room."""
    return (min(room, DEFAULT), room) if max_memory is None else (max_memory, max_memory)


def give_back() -> None:
    """Give the system what is free between what is still in use, which glibc keeps: after many
    small objects, about as much as these take."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def return_at_once() -> None:
    """From here on, have glibc give the system each large array when it is freed: it takes a tenth
    more time, and leaves no holes between others."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    import resource

    # /proc first, since ru_maxrss can be that of the process that started this one
    peak = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Resident memory of this process now, in bytes; the peak where the system does not tell."""
    return _status("VmRSS") * 1024 or peak_memory()


def _status(name: str) -> int:
    """A number of kB in Linux's status of this process; 0 elsewhere."""
    with contextlib.suppress(OSError):
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1])
    return 0
