"""What a method is: `prepare` looks at the helper alone, `rows` makes the rows of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, mean

NO_ANCHOR = -1
"""For a wanted token that is none of the anchors: a missing one."""


class Prepared(Protocol):
    """A method that has seen the helper. It serves every vocabulary tensor of the source."""

    @property
    def guarded(self) -> dict[str, Ids]:
        """Wanted rows (by index) that the formula did not make, by the reason why."""
        ...

    def rows(self, anchors: Rows) -> Rows:
        """The wanted rows (n_wanted, d_source) of a tensor, from its rows of the anchors.

        `anchors` is (n_anchors, d_source), in the order of the anchors given to `prepare`. Rows
        are made when they are asked for, by a slice of consecutive rows. Raises TransferError if
        there is not one row for each anchor.
        """
        ...

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """For some wanted rows, the `top` anchors that weigh most: indices and weights."""
        ...


class Method(Protocol):
    """A rule that makes the rows of wanted tokens from anchors' rows."""

    @property
    def name(self) -> str: ...

    @property
    def reads_helper(self) -> bool:
        """Whether the helper's rows matter. If not, those given have no columns."""
        ...

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> Prepared:
        """Learn from the helper's rows of the anchors (n_anchors, d_helper) and of the wanted
        tokens (n_wanted, d_helper).

        own: (n_wanted,) the anchor that is the same token, or NO_ANCHOR; that anchor's row takes no
        part in the wanted one, which is made as if the token were missing. None: all are missing.
        Raises TransferError if there is no anchor, the widths differ, or a row has NaN or Inf.
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


class WithMean:
    """Wanted rows of which some, without a direction in the helper, are the anchors' mean row."""

    def __init__(self, rows: Rows, directionless: npt.NDArray[np.bool_], anchors: Rows) -> None:
        self._rows = rows
        self._directionless = directionless
        self._mean = mean(anchors).astype(np.float32) if directionless.any() else None
        self.shape = rows.shape

    def __getitem__(self, index: slice) -> Floats:
        rows = self._rows[index]
        if self._mean is not None:
            rows[self._directionless[index]] = self._mean
        return rows


def heaviest(indices: Ids, weights: Doubles, top: int) -> tuple[Ids, Doubles]:
    """The `top` largest weights, in falling order, with their indices."""
    if top < len(weights):  # sorting all of them costs fifty times as much
        keep = np.flatnonzero(weights >= np.partition(weights, -top)[-top])
        indices, weights = indices[keep], weights[keep]
    order = np.argsort(-weights, kind="stable")[:top]
    return indices[order], weights[order]
