"""An evaluation for people."""

from __future__ import annotations

from clpstream.evaluation import Evaluated, Evaluation, Figure
from clpstream.terminal import printable, size

_HEAD = ("", "MRR", "centred cosine", "norm ratio", "seconds", "would need", "")


def table(found: Evaluation) -> str:
    """A line for each method, the best first and marked; then what was done, and what it tells."""
    names = [method.method for method in found.methods]
    rows = [_HEAD, *(_row(method, names.count(method.method) > 1) for method in found.methods)]
    rows[1] = (*rows[1][:-1], "<- best")
    rows.append(("chance", f"{found.chance:.4f}", *[""] * 5))
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
            + [row[-1]]
        ).rstrip()
        for row in rows
    ]
    times = "once" if found.repeats == 1 else f"{found.repeats} times"
    lines += [
        f"hidden    {found.hidden:,} of {found.anchors:,} shared tokens, {times}; each one's row "
        f"was looked for among {found.candidates:,}",
        "MRR       tells more than the cosine which rows are good; the loss of a target tells most "
        "(clpstream score)",
        *(f"warning   {warning}" for warning in found.warnings),
    ]
    return "\n".join(map(printable, lines))


def _row(found: Evaluated, in_full: bool) -> tuple[str, ...]:
    options = ", ".join(f"{name} {str(value).lower()}" for name, value in found.options.items())
    return (
        f"{found.method} ({options})" if in_full and options else found.method,
        _figure(found.mrr, 4),
        _figure(found.cosine, 4),
        _figure(found.norm_ratio, 3),
        _figure(found.seconds, 2),
        size(found.memory_needed),
        "",
    )


def _figure(found: Figure, digits: int) -> str:
    spread = "" if found.spread is None else f" ± {found.spread:.{digits}f}"
    return f"{found.mean:.{digits}f}{spread}"
