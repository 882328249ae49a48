"""What is odd about the rows: of the helper that were used, and those that came of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from clpstream.checks import named_tokens
from clpstream.plan import Plan
from clpstream.transfer import LITTLE, PROMISE, Rows, SearchReport, Selected, learned, untrained

Ids = npt.NDArray[np.int64]


def row_warnings(plan: Plan, outliers: Mapping[str, Mapping[int, float]]) -> list[str]:
    """What is odd about the helper's rows that were used, and about the rows that came of them."""
    warnings = []
    if plan.embeddings is not None and len(plan.origins.combined):
        table = plan.embeddings.plane(0)
        rows = Selected(table, plan.origins.helper_rows)
        signal = learned(rows, Selected(table, plan.origins.anchor_rows))
        if signal is not None and signal < LITTLE:
            warnings.append(
                "the helper looks hardly trained: its rows are nearer to their nearest others than "
                f"random ones would be by {max(0, signal):.0%}, where an hour of training gives "
                "30% and large models have 100%; train it for longer if the new rows are to be good"
            )
        warnings += _untrained(plan, rows, "")
        if plan.head is not None:
            head = Selected(plan.head.plane(0), plan.origins.helper_rows)
            warnings += _untrained(plan, head, f" in {plan.head.name}")
    for name, found in outliers.items():
        if found:
            first = sorted(found, key=lambda token: -found[token])
            names = named_tokens(plan.target_vocabulary, first)
            warnings.append(
                f"{name}: {len(found):,} new rows are longer than that of any shared token, up to "
                f"{found[first[0]]:.2f} times as long: {names}; such tokens can take probability "
                "from all others: score the target, and mistrust the helper if its origin is "
                "unknown"
            )
    return warnings


def _untrained(plan: Plan, rows: Rows, where: str) -> list[str]:
    return [
        f"{len(places):,} of the helper's rows{where} are {what}, as those of tokens that it was "
        "not trained on: "
        f"{named_tokens(plan.target_vocabulary, plan.origins.combined[places].tolist())}; the new "
        "rows know no more"
        for what, places in untrained(rows).items()
        if len(places)
    ]


def search_warnings(searches: Mapping[str, SearchReport]) -> list[str]:
    """Indexes that miss more neighbours than "auto" would let them."""
    return [
        f"index {search.index}: of the {search.neighbors} nearest tokens it found "
        f"{search.recall:.1%}, less than {PROMISE:.0%}, measured on {search.sample:,} tokens; rows "
        "are made of farther ones: give it more lists or bits, or leave --index out"
        for search in searches.values()
        if search.recall < PROMISE
    ]


def guard_warnings(plan: Plan, guarded: Mapping[str, Ids]) -> list[str]:
    """Tokens whose rows the method's formula did not make."""
    warnings = []
    for reason, rows in guarded.items():
        if len(rows):
            tokens = plan.origins.combined[rows].tolist()
            warnings.append(
                f"guarded ({plan.method.name}: {reason}): {len(rows):,} of the tokens to make: "
                f"{named_tokens(plan.target_vocabulary, tokens)}"
            )
    return warnings
