"""What a method is: `prepare` looks at the helper alone, `rows` makes the rows of one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clpstream.errors import TransferError
from clpstream.memory import block_bytes
from clpstream.transfer.rows import (
    Doubles,
    Floats,
    Ids,
    Rows,
    Unit,
    blocks,
    bounds,
    mean,
)

NO_ANCHOR = -1
"""For a wanted token that is none of the anchors: a missing one."""


class Prepared(Protocol):
    """A method that has seen the helper. It serves every vocabulary tensor of the source.

    One that may not have compared all anchors has `search`, a `SearchReport` or None.
    """

    @property
    def guarded(self) -> dict[str, Ids]:
        """Wanted rows (by index) that the formula did not make, by the reason why."""
        ...

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """The wanted rows (n_wanted, d_source) of a tensor, from its rows of the anchors.

        `anchors` is (n_anchors, d_source), in the order of the anchors given to `prepare`. `words`
        (n_words, d_source) are the tensor's rows of frequent source tokens, the most frequent
        first, for a method that looks for the wanted tokens among them. Rows are made when they are
        asked for, by a slice of consecutive rows. Raises TransferError if there is not one row for
        each anchor.
        """
        ...

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """For some wanted rows, the `top` anchors that weigh most: indices and weights."""
        ...


@dataclass(frozen=True)
class Table:
    """A tensor of the source, and what its rows follow.

    prepared: the method, prepared on one of the helper's tables. anchors, words: the tensor's rows,
    as for `Prepared.rows`.
    """

    prepared: Prepared
    anchors: Rows
    words: Rows | None = None


class Method(Protocol):
    """A rule that makes the rows of wanted tokens from anchors' rows.

    One whose rows depend on which other tokens are wanted has `learns_from_wanted`, true. One that
    learns more from several tensors than from each has `together`, as `Align.together`.
    """

    @property
    def name(self) -> str: ...

    @property
    def reads_helper(self) -> bool:
        """Whether the helper's rows matter. If not, those given have no columns."""
        ...

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> Prepared:
        """Learn from the helper's rows of the anchors (n_anchors, d_helper) and of the wanted
        tokens (n_wanted, d_helper).

        own: (n_wanted,) the anchor that is the same token, or NO_ANCHOR. None: all are missing. The
        method's docstring says what it does to the wanted row, which is one of two things.
        Either the own anchor's row takes no part in it: it is made as if the token were missing, by
        a formula whose constants (a center, a penalty) may be those of all anchors. Or the row
        comes from one map for all tokens, to which the own anchor has added one pair of many; then
        `own` tells which anchors are wanted themselves, and changes no map but one that looks for
        its own pairs. In both cases `Prepared.nearest` leaves the own anchor out. Raises
        TransferError if there is no anchor, the widths differ, a row has NaN or Inf, or `own` names
        an anchor that is not there or the only one.
        """
        ...

    def fewest(self, d_helper: int, d_source: int) -> int:
        """With fewer anchors than this, rows can't be relied on."""
        ...

    def options(self) -> dict[str, Any]:
        """The parameters, for the report."""
        ...

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """About how much memory preparing and making rows takes."""
        ...


def rows_together(method: Method, tables: Sequence[Table]) -> Iterator[Rows]:
    """The wanted rows of several tensors of one source, one after the other."""
    together: Callable[[Sequence[Table]], Iterator[Rows]] = getattr(method, "together", _one_by_one)
    return together(tables)


def _one_by_one(tables: Sequence[Table]) -> Iterator[Rows]:
    return (table.prepared.rows(table.anchors, table.words) for table in tables)


def own_anchors(own: Ids | None, wanted: int, anchors: int) -> Ids:
    """`own` as `Method.prepare` takes it, as int64 (wanted,).

    Raises TransferError if it is of another length, names an anchor that is not there, or the only
    one that there is.
    """
    if own is None:
        return np.full(wanted, NO_ANCHOR, np.int64)
    own = np.asarray(own, np.int64)
    if own.shape != (wanted,):
        raise TransferError(f"own has shape {own.shape}; it must be ({wanted},), one a wanted row")
    if wanted and not (own.min() >= NO_ANCHOR and own.max() < anchors):
        raise TransferError(f"own names anchors from {own.min()} to {own.max()} of {anchors}")
    if anchors == 1 and (own != NO_ANCHOR).any():
        raise TransferError("there is one anchor only, and its own row can't be made from it")
    return own


def directionless(wanted: Unit) -> npt.NDArray[np.bool_]:
    """Which rows (n,) tell nothing. Raises TransferError for NaN and Inf."""
    lost = np.zeros(wanted.shape[0], bool)
    for block in blocks(wanted):
        lost[block] = ~wanted[block].any(axis=1)
    return lost


def finite_mean(rows: Rows) -> Doubles:
    """The mean row, shape (d,). Raises TransferError for NaN and Inf, and names the row."""
    center = mean(rows)
    if not np.isfinite(center).all():
        directionless(Unit(rows, None))
    return center


class MeanOfOthers:
    """For each wanted row the mean of the anchors' rows, its own left out: (n_wanted, d_source)."""

    def __init__(self, anchors: Rows, own: Ids) -> None:
        self._anchors = anchors
        self._own = own
        self._mean = mean(anchors)
        self.shape = (len(own), anchors.shape[1])

    def __getitem__(self, index: Any) -> Floats:
        """By a slice or by integers."""
        own = self._own[index]
        rows = np.repeat(self._mean[None].astype(np.float32), len(own), axis=0)
        shared = np.flatnonzero(own != NO_ANCHOR)
        step = max(1, block_bytes() // (8 * max(1, self.shape[1])))
        for start in range(0, len(shared), step):
            some = shared[start : start + step]
            excess = self._anchors[own[some]] - self._mean
            rows[some] = self._mean - excess / (self._anchors.shape[0] - 1)
        return rows


class WithMean:
    """Wanted rows plus the mean of the other anchors' rows, times a share for each row."""

    def __init__(self, rows: Rows, shares: npt.NDArray[Any], anchors: Rows, own: Ids) -> None:
        """shares: (n_wanted,); where it is 0, nothing is added."""
        self._rows = rows
        self._shares = shares
        self._means = MeanOfOthers(anchors, own) if shares.any() else None
        self.shape = rows.shape

    def __getitem__(self, index: slice) -> Floats:
        rows = self._rows[index]
        if self._means is not None:
            start, stop = bounds(index, self.shape[0])
            some = np.flatnonzero(self._shares[start:stop])
            shares = self._shares[start + some].astype(np.float32)
            rows[some] += shares[:, None] * self._means[start + some]
        return rows


def heaviest(indices: Ids, weights: Doubles, top: int) -> tuple[Ids, Doubles]:
    """The `top` largest weights, in falling order, with their indices."""
    if top < len(weights):  # sorting all of them costs fifty times as much
        keep = np.flatnonzero(weights >= np.partition(weights, -top)[-top])
        indices, weights = indices[keep], weights[keep]
    order = np.argsort(-weights, kind="stable")[:top]
    return indices[order], weights[order]
