"""Tensors whose bytes do not lie in C order on disk, read in C order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint.dtypes import BITS
from clpstream.checkpoint.safetensors_file import TensorSpan
from clpstream.errors import CheckpointError
from clpstream.memory import block_bytes

_PIECE_BYTES = 64 << 10
"""What is read at once, however little of it is needed: a read call costs as much."""
_DENSE_BYTES = 4 << 20
"""What is read at once where a quarter of it is needed."""


def c_order_blocks(span: TensorSpan) -> Iterator[npt.NDArray[Any]]:
    """The elements of a strided tensor in C order, bit for bit, in blocks of bounded size.

    A transposed tensor is gone through whole for every block.
    """
    fd = open_span(span)
    try:
        itemsize, axis = BITS[span.dtype] // 8, 0
        while prod(span.shape[axis + 1 :]) * itemsize > block_bytes():
            axis += 1
        step = max(1, block_bytes() // (prod(span.shape[axis + 1 :]) * itemsize))
        for index in np.ndindex(span.shape[:axis]):
            for start in range(0, span.shape[axis], step):
                count = min(step, span.shape[axis] - start)
                out = np.empty((count, *span.shape[axis + 1 :]), f"<u{itemsize}")
                read_strided(fd, span, (*index, start), out)
                yield out
    finally:
        os.close(fd)


def open_span(span: TensorSpan) -> int:
    """A file descriptor of the tensor's file, which the caller closes."""
    try:
        return os.open(span.path, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{span}: can't be read: {error.strerror}") from None


def read_fully(fd: int, span: TensorSpan, into: memoryview, offset: int) -> None:
    """Fill `into` from `offset` of the tensor's file."""
    while len(into):
        count = os.preadv(fd, [into], offset)
        if count == 0:
            raise CheckpointError(f"{span}: the file became shorter while it was read")
        into, offset = into[count:], offset + count


def read_strided(fd: int, span: TensorSpan, start: tuple[int, ...], out: npt.NDArray[Any]) -> None:
    """Fill `out`, whose axes are the span's last ones, from the element `start` on.

    `start` may be shorter than the span's shape: then 0 follows.
    """
    strides = [stride * out.itemsize for stride in span.strides or ()]
    offset = span.offset + sum(i * s for i, s in zip(start, strides, strict=False))
    _gather(fd, span, offset, out, strides[len(strides) - out.ndim :])


def _gather(
    fd: int, span: TensorSpan, offset: int, out: npt.NDArray[Any], strides: list[int]
) -> None:
    """Read what covers `out` if that is little more than it, else half of `out` and the rest."""
    reaches = [(size - 1) * stride for size, stride in zip(out.shape, strides, strict=True)]
    cover = sum(reaches) + out.itemsize
    if cover <= _PIECE_BYTES or cover <= min(4 * out.nbytes, _DENSE_BYTES):
        data = np.empty(cover // out.itemsize, out.dtype)
        read_fully(fd, span, data.data.cast("B"), offset)
        out[...] = np.lib.stride_tricks.as_strided(data, out.shape, strides)
        return
    axis = int(np.argmax(reaches))
    half = out.shape[axis] // 2
    left, right = np.split(out, [half], axis)
    _gather(fd, span, offset, left, strides)
    _gather(fd, span, offset + half * strides[axis], right, strides)
