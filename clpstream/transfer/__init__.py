"""Arrays in, arrays out: nearest neighbours, weights and the methods that make missing rows."""

from __future__ import annotations

from collections.abc import Callable

from clpstream.transfer.clp import Clp
from clpstream.transfer.combination import gathered
from clpstream.transfer.knn import Knn
from clpstream.transfer.method import Method, Prepared
from clpstream.transfer.rows import BLOCK_BYTES, Rows, Selected, mean

METHODS: dict[str, Callable[..., Method]] = {"clp": Clp, "knn": Knn}
"""Every method by its name on the command line."""

__all__ = [
    "BLOCK_BYTES",
    "METHODS",
    "Clp",
    "Knn",
    "Method",
    "Prepared",
    "Rows",
    "Selected",
    "gathered",
    "mean",
]
