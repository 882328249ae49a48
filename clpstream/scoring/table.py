"""Scores for people."""

from __future__ import annotations

from collections.abc import Sequence

from clpstream.scoring.intervals import Interval
from clpstream.scoring.scores import Difference, Score
from clpstream.terminal import printable, size

_HEAD = (
    *("", "bits per byte", "95 % interval", "bytes", "tokens", "bytes/token"),
    *("seconds", "peak memory"),
)


def table(scores: Sequence[Score], difference: Difference | None = None) -> str:
    """A line for each model, and one for the difference of two: the second minus the first."""
    rows = [_HEAD, *map(_row, scores)]
    if difference is not None:
        rows.append(("difference", f"{difference.bits_per_byte:+.4f}", _range(difference.interval)))
    widths = [max(len(row[place]) for row in rows if place < len(row)) for place in range(8)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
        )
        for row in rows
    ]
    if difference is not None:
        lines[-1] += f"  {_verdict(difference.interval)}"
    found = dict.fromkeys(
        f"warning   {found.model}: {warning}" for found in scores for warning in found.warnings
    )
    return "\n".join(map(printable, [*lines, *found]))


def _row(found: Score) -> tuple[str, ...]:
    return (
        found.model,
        f"{found.bits_per_byte:.4f}",
        _range(found.interval),
        f"{found.bytes:,}",
        f"{found.tokens:,}",
        f"{found.bytes_per_token:.2f}",
        f"{found.seconds:.1f}",
        size(found.peak_memory),
    )


def _range(found: Interval | None) -> str:
    return "unknown" if found is None else f"{found.low:.4f} to {found.high:.4f}"


def _verdict(found: Interval | None) -> str:
    if found is None:
        return "from one block of text: say nothing of it"
    if found.high < 0:
        return "the second is better"
    return "the second is worse" if found.low > 0 else "not told apart by this text"
