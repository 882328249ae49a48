"""A vocabulary tensor of the target, block after block: copied and new rows in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import TensorRows
from clpstream.errors import NotFiniteError, TransferError
from clpstream.memory import block_bytes
from clpstream.output.ahead import ahead
from clpstream.transfer import Rows

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Made = tuple[Ids, Rows]
"""Ids of tokens, ascending, and the row of each."""


def target_rows(
    source: TensorRows,
    copied: Ids,
    made: Sequence[Made],
    filler: Floats,
    watch: Callable[[Ids, Floats], None],
) -> Iterator[npt.NDArray[Any]]:
    """Blocks of the target tensor's rows, bit patterns in the source's dtype.

    copied: (target rows,) the source row to copy bit for bit, where it is not negative.
    made: rows to round to the dtype, made while those before them are written.
    filler: (width,) what stands in rows that are neither.
    watch: is shown all made rows, with the ids of their tokens.

    Raises NotFiniteError if a row to copy has NaN or Inf, TransferError if a new row is too large
    for the dtype.
    """
    empty = source.encode(filler[None])
    step = max(1, block_bytes() // (4 * source.shape[1]))
    for part, new in ahead(_new_rows(made, len(copied), step)):
        start, ids = part.start, copied[part]
        old = ids >= 0
        bits = source.bits(ids[old])
        if bad := _first_not_finite(source, bits):
            raise NotFiniteError(str(source.span), int(ids[old][bad - 1]))
        block = np.empty((len(ids), source.shape[1]), bits.dtype)
        block[old] = bits
        del bits
        rest = ~old
        for tokens, rows in new:
            watch(tokens, rows)
            encoded = source.encode(rows)
            if bad := _first_not_finite(source, encoded):
                raise TransferError(
                    f"{source.span}: the new row of token id {tokens[bad - 1]} is too large for "
                    f"{source.span.dtype}; try another --method"
                )
            block[tokens - start] = encoded
            rest[tokens - start] = False
        block[rest] = empty
        yield block


def _new_rows(
    made: Sequence[Made], count: int, step: int
) -> Iterator[tuple[slice, list[tuple[Ids, Floats]]]]:
    """For each `step` of `count` target rows, the tokens of new rows among them, and these."""
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        spans = [np.searchsorted(tokens, (part.start, part.stop)).tolist() for tokens, _ in made]
        yield (
            part,
            [
                (tokens[begin:end], rows[begin:end])
                for (tokens, rows), (begin, end) in zip(made, spans, strict=True)
                if begin < end
            ],
        )


def _first_not_finite(source: TensorRows, rows: npt.NDArray[Any]) -> int:
    """1 + the first row with NaN or Inf; 0 if there is none."""
    finite = source.finite(rows)
    return 0 if finite.all() else 1 + int(finite.argmin())
