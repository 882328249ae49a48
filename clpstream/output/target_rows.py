"""A vocabulary tensor of the target, block after block: copied and new rows in their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import TensorRows, encode
from clpstream.checkpoint.dtypes import words
from clpstream.errors import NotFiniteError, TransferError
from clpstream.transfer import BLOCK_BYTES, Rows


def target_rows(
    source: TensorRows,
    source_of: npt.NDArray[np.int64],
    new: npt.NDArray[np.bool_],
    new_rows: Rows,
    unused_row: npt.NDArray[np.float32],
) -> Iterator[npt.NDArray[Any]]:
    """Blocks of the target tensor's rows, bit patterns in the source's dtype.

    source_of: (target rows,) the source row to copy bit for bit, where it is not negative.
    new: (target rows,) where a row of `new_rows` belongs; they come in the order of the target.
    unused_row: (width,) what stands in rows that are neither.

    Raises NotFiniteError if a row to copy has NaN or Inf, TransferError if a new row is too large
    for the dtype.
    """
    step = max(1, BLOCK_BYTES // (4 * source.shape[1]))
    filler = words(encode(unused_row[None], source.span.dtype))
    place = 0
    for start in range(0, len(source_of), step):
        ids, is_new = source_of[start : start + step], new[start : start + step]
        copied = ids >= 0
        block = np.repeat(filler, len(ids), axis=0)
        block[copied] = source.words(ids[copied])
        if bad := _first_not_finite(source, block[copied]):
            raise NotFiniteError(str(source.span), int(ids[copied][bad - 1]))
        count = int(is_new.sum())
        if count:
            rows = words(encode(new_rows[place : place + count], source.span.dtype))
            if bad := _first_not_finite(source, rows):
                token = start + int(np.flatnonzero(is_new)[bad - 1])
                raise TransferError(
                    f"{source.span}: the new row of token id {token} is too large for "
                    f"{source.span.dtype}; try another --method"
                )
            block[is_new] = rows
        place += count
        yield block


def _first_not_finite(source: TensorRows, rows: npt.NDArray[Any]) -> int:
    """1 + the first row with NaN or Inf; 0 if there is none."""
    finite = source.finite(rows)
    return 0 if finite.all() else 1 + int(finite.argmin())
