"""Which shared tokens keep their source rows, and the method prepared for all other tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.checkpoint import TensorRows, VocabularyTensor
from clpstream.new_rows import Side, finite_words
from clpstream.plan import Plan, Sharing
from clpstream.progress import Progress, Update
from clpstream.transfer import (
    Agreement,
    Prepared,
    Procrustes,
    Rows,
    SearchReport,
    Selected,
    agreement_of,
    learned,
)

_VERSED = 1.0
"""Of `learned`: the large models have 1.7, those trained for an hour 0.2 to 0.4."""


def settle(plan: Plan, progress: Progress) -> Plan:
    """The plan, with the shared tokens chosen whose rows the method is to make.

    "map": all words; "auto": the words whose rows in source and helper don't agree (see
    `clpstream.transfer.Agreement`). With too few anchors to tell, none.
    """
    origins = plan.origins
    if plan.shared == "copy" or not len(origins.words) or plan.embeddings is None:
        return plan
    chosen, threshold = np.ones(len(origins.words), bool), None
    if plan.shared == "auto":
        tables, source = _judges(plan, plan.embeddings)
        helper = tables[0]
        if len(origins.anchors) < 2 * Procrustes().fewest(helper.shape[1], source.shape[1]):
            note = "too few shared tokens to tell which mean the same in both models: all copied"
            return replace(plan, warnings=(*plan.warnings, note))
        read = len(tables) * len(origins.anchors)
        with progress.task("agreement: shared tokens", read, "tokens") as update:
            found = Agreement.mean(
                agreement_of(
                    Counted(Selected(table, origins.anchor_rows), update),
                    Selected(source, origins.anchors),
                )
                for table in tables
            )
        unsure = np.zeros(len(origins.anchors), bool)
        unsure[origins.words_own] = True
        signal = learned(Selected(source, finite_words(plan, [source])))
        versed = signal is not None and signal >= _VERSED
        threshold = found.threshold(unsure, versed=versed)
        chosen = found.of_pairs[origins.words_own] < threshold
    return replace(plan, origins=origins.remaking(chosen), sharing=Sharing(threshold))


def _judges(plan: Plan, helper: VocabularyTensor) -> tuple[list[TensorRows], TensorRows]:
    """Tables of the helper and the one of the source that tell what tokens mean: output heads
    where they can, since at each step of training all of their rows learn."""
    if (head := plan.source_head) is not None:
        return [(plan.head or helper).plane(0)], head.plane(0)
    tables = [helper, *([] if plan.beside is None else [plan.beside])]
    return [table.plane(0) for table in tables], plan.source_embeddings.plane(0)


def prepare(plan: Plan, progress: Progress) -> dict[Side, Prepared]:
    """The method, prepared on each of the helper's tables that a tensor's rows follow."""
    tables: dict[Side, Rows] = {"input": np.empty((plan.helper_vocabulary.size, 0), np.float32)}
    if plan.embeddings is not None:
        tables["input"] = plan.embeddings.plane(0)
    if plan.head is not None:
        tables["head"] = plan.head.plane(0)
    if plan.beside is not None and hasattr(plan.method, "together"):
        tables["beside"] = plan.beside.plane(0)
    return {side: _prepared(plan, table, progress) for side, table in tables.items()}


def searches(prepared: Mapping[Side, Prepared]) -> dict[str, SearchReport]:
    """How the nearest anchors were found, by the helper's table, where not all were compared."""
    found = {side: getattr(table, "search", None) for side, table in prepared.items()}
    return {side: report for side, report in found.items() if report is not None}


def guarded(prepared: Mapping[Side, Prepared]) -> dict[str, npt.NDArray[np.int64]]:
    """Combined tokens (by index) that the formula did not make in some tensor, by the reason."""
    found: dict[str, npt.NDArray[np.int64]] = {}
    for side in ("input", "head"):
        for reason, rows in prepared[side].guarded.items() if side in prepared else ():
            found[reason] = np.union1d(found[reason], rows) if reason in found else rows
    return found


def _prepared(plan: Plan, helper: Rows, progress: Progress) -> Prepared:
    origins, method = plan.origins, plan.method
    wanted = Selected(helper, origins.helper_rows)
    shown = progress if wanted.shape[0] else Progress()
    with shown.task(f"{method.name}: tokens", wanted.shape[0], "tokens") as update:
        anchors = Selected(helper, origins.anchor_rows)
        return method.prepare(anchors, Counted(wanted, update), origins.own)


class Counted:
    """Rows that report how many of them were read: the progress of a preparation."""

    def __init__(self, rows: Rows, update: Update) -> None:
        self._rows = rows
        self._update = update
        self.shape = rows.shape
        self._left = rows.shape[0]

    def __getitem__(self, index: Any) -> npt.NDArray[np.float32]:
        found = self._rows[index]
        more = min(len(found), self._left)  # some rows are read twice
        self._left -= more
        self._update(more)
        return found
