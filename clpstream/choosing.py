"""`--method auto`: the method for a plan, by how well each makes rows that are known."""

from __future__ import annotations

from dataclasses import replace

from clpstream.evaluation import choose
from clpstream.plan import CHOICES, Plan
from clpstream.progress import Progress
from clpstream.transfer import METHODS
from clpstream.transfer.held_out import Spaces


def with_method(plan: Plan, progress: Progress) -> Plan:
    """The plan with its method chosen, if it was left to be: see `clpstream.evaluation.choose`.

    Without anchors enough to choose by, the method is `knn`, and a warning says so.
    """
    if not plan.automatic or plan.embeddings is None:
        return plan
    spaces = Spaces(
        helper=plan.embeddings.plane(0),
        source=plan.source_embeddings.plane(0),
        anchors=plan.origins.anchors,
        anchor_rows=plan.origins.anchor_rows,
        missing=plan.origins.helper_rows,
        words=plan.words,
    )
    found = choose(spaces, CHOICES, progress)
    if not found:
        note = "too few shared tokens to choose a method by: knn"
        plan = replace(plan, mrr={}, warnings=(*plan.warnings, note))
        return plan.with_method(METHODS["knn"]())
    return replace(plan, mrr=found).with_method(METHODS[next(iter(found))]())
