"""Arrays in, arrays out: nearest neighbours, weights and the methods that make missing rows."""

from __future__ import annotations

from collections.abc import Callable

from clpstream.transfer.agreement import Agreement, agreement_bytes, agreement_of
from clpstream.transfer.align import Align
from clpstream.transfer.clp import Clp
from clpstream.transfer.combination import gathered, gathering_bytes
from clpstream.transfer.gaussian import Random
from clpstream.transfer.index import PROMISE, SearchReport
from clpstream.transfer.knn import Knn
from clpstream.transfer.learned import LITTLE, learned
from clpstream.transfer.mean import Mean
from clpstream.transfer.method import NO_ANCHOR, Method, Prepared, Table, rows_together
from clpstream.transfer.omp import Omp
from clpstream.transfer.procrustes import Procrustes
from clpstream.transfer.ridge import Ridge
from clpstream.transfer.rows import Rows, Selected, Unit, blocks, lengths, mean
from clpstream.transfer.subword import Subword
from clpstream.transfer.untrained import untrained

METHODS: dict[str, Callable[..., Method]] = {
    "align": Align,
    "procrustes": Procrustes,
    "clp": Clp,
    "knn": Knn,
    "mean": Mean,
    "omp": Omp,
    "random": Random,
    "ridge": Ridge,
    "subword": Subword,
}
"""Every method by its name on the command line."""

__all__ = [
    "LITTLE",
    "METHODS",
    "NO_ANCHOR",
    "PROMISE",
    "Agreement",
    "Align",
    "Clp",
    "Knn",
    "Mean",
    "Method",
    "Omp",
    "Prepared",
    "Procrustes",
    "Random",
    "Ridge",
    "Rows",
    "SearchReport",
    "Selected",
    "Subword",
    "Table",
    "Unit",
    "agreement_bytes",
    "agreement_of",
    "blocks",
    "gathered",
    "gathering_bytes",
    "learned",
    "lengths",
    "mean",
    "rows_together",
    "untrained",
]
