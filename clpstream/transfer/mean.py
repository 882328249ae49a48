"""`mean`: every wanted row is the mean of the anchors' rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.memory import block_bytes
from clpstream.transfer.method import MeanOfOthers, own_anchors
from clpstream.transfer.rows import Doubles, Ids, Rows, check_count, check_shapes


@dataclass(frozen=True)
class Mean:
    """The mean of the anchors' rows for every token: what a method must beat. No helper is read.

    In an output head, the logit of such a token is the mean of the anchors' logits, so that it is
    no more likely than they are on average (Hewitt 2021, "Initializing new word embeddings for
    pretrained language models"): a safe start, but one that can't tell tokens apart.
    """

    name: ClassVar[str] = "mean"
    reads_helper: ClassVar[bool] = False

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> PreparedMean:
        """See `Method.prepare`. The rows may have no columns."""
        check_shapes(anchors, wanted)
        return PreparedMean(own_anchors(own, wanted.shape[0], anchors.shape[0]), anchors.shape[0])

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`."""
        return 1

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return {}

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        return 6 * block_bytes() + 8 * missing


class PreparedMean:
    """See `Prepared`."""

    def __init__(self, own: Ids, anchors: int) -> None:
        self._own = own
        self._anchors = anchors
        self.guarded: dict[str, Ids] = {}

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """See `Prepared.rows`."""
        check_count(anchors, self._anchors)
        return MeanOfOthers(anchors, self._own)

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`. All weigh the same; the first ones are told."""
        return [self._first(int(self._own[row]), top) for row in rows]

    def _first(self, own: int, top: int) -> tuple[Ids, Doubles]:
        others = np.arange(min(top + 1, self._anchors))
        others = others[others != own][:top]
        return others, np.full(len(others), 1 / (self._anchors - (own >= 0)))
