"""The dtypes of the safetensors format: which have a known size, which clpstream computes with."""

from __future__ import annotations

from math import prod
from typing import Any

import ml_dtypes
import numpy as np

BITS: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(
        ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
    ),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one element. A dtype that is not listed is newer than this table: it passes through."""

FLOATS: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
"""The dtypes whose rows can be combined."""

INTEGERS: dict[str, np.dtype[Any]] = {
    name: np.dtype(f"<{name[0].lower()}{int(name[1:]) // 8}")
    for name in ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
}
"""The dtypes whose rows can only be copied."""


def size_in_bits(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bits of a tensor; None where the dtype is unknown."""
    return BITS[dtype] * prod(shape) if dtype in BITS else None
