"""A vocabulary tensor of the target, block after block: copied and new rows in their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import TensorRows
from clpstream.errors import NotFiniteError, TransferError
from clpstream.memory import block_bytes
from clpstream.transfer import Rows


def target_rows(
    source: TensorRows,
    copied: npt.NDArray[np.int64],
    made: Sequence[tuple[npt.NDArray[np.int64], Rows]],
    filler: npt.NDArray[np.float32],
) -> Iterator[npt.NDArray[Any]]:
    """Blocks of the target tensor's rows, bit patterns in the source's dtype.

    copied: (target rows,) the source row to copy bit for bit, where it is not negative.
    made: rows to round to the dtype, and the ids (ascending) of the tokens that they belong to.
    filler: (width,) what stands in rows that are neither.

    Raises NotFiniteError if a row to copy has NaN or Inf, TransferError if a new row is too large
    for the dtype.
    """
    step = max(1, block_bytes() // (4 * source.shape[1]))
    empty = source.encode(filler[None])
    for start in range(0, len(copied), step):
        ids = copied[start : start + step]
        old = ids >= 0
        block = np.repeat(empty, len(ids), axis=0)
        block[old] = source.words(ids[old])
        if bad := _first_not_finite(source, block[old]):
            raise NotFiniteError(str(source.span), int(ids[old][bad - 1]))
        for tokens, rows in made:
            begin, end = np.searchsorted(tokens, (start, start + len(ids))).tolist()
            if begin == end:
                continue
            new = source.encode(rows[begin:end])
            if bad := _first_not_finite(source, new):
                raise TransferError(
                    f"{source.span}: the new row of token id {tokens[begin + bad - 1]} is too "
                    f"large for {source.span.dtype}; try another --method"
                )
            block[tokens[begin:end] - start] = new
        yield block


def _first_not_finite(source: TensorRows, rows: npt.NDArray[Any]) -> int:
    """1 + the first row with NaN or Inf; 0 if there is none."""
    finite = source.finite(rows)
    return 0 if finite.all() else 1 + int(finite.argmin())
