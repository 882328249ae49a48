"""Making the next block while the last one is written."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread makes the next one while the caller is busy with the last.

    The thread sees the caller's context (`clpstream.memory`). numpy's warnings are off in it: up to
    numpy 1.26 they don't belong to the context.
    """
    end = object()

    def step() -> Item | object:
        with np.errstate(all="ignore"):
            return next(items, end)

    context = copy_context()
    with ThreadPoolExecutor(1, thread_name_prefix="clpstream-ahead") as pool:
        future = pool.submit(context.run, step)
        while (item := future.result()) is not end:
            future = pool.submit(context.run, step)
            yield item  # type: ignore[misc]
