"""Reading tensors into the kernel's cache in one go, before their rows are read one by one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence

from clpstream.checkpoint.safetensors_file import TensorSpan
from clpstream.memory import allowed_memory

_BYTES_AT_ONCE = 2 << 20
"""As much as the kernel reads ahead for one piece of advice."""


def read_ahead(spans: Sequence[TensorSpan]) -> None:
    """Have a thread ask the kernel to read whole tensors, one after the other.

    Thousands of scattered rows that are not in its cache take a disk several times as long, a
    network file system even more. Tensors that don't fit in memory would be read twice: they are
    left alone, all of them.
    """
    fit = sum(span.length for span in spans) <= allowed_memory() // 2
    if fit and hasattr(os, "posix_fadvise"):
        reader = threading.Thread(target=_advise, args=(spans,), name="clpstream-read", daemon=True)
        with contextlib.suppress(RuntimeError):  # no room for one more thread: so be it
            reader.start()


def _advise(spans: Sequence[TensorSpan]) -> None:
    # files that can't be read, and file systems that take no advice, are nobody's concern here
    with contextlib.suppress(OSError):
        for span in spans:
            with span.path.open("rb") as file:
                for start in range(0, span.length, _BYTES_AT_ONCE):
                    count = min(_BYTES_AT_ONCE, span.length - start)
                    place = span.offset + start
                    os.posix_fadvise(file.fileno(), place, count, os.POSIX_FADV_WILLNEED)
