"""What people see: progress while a conversion runs, and a summary at its end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from clpstream.progress import Progress, Update

if TYPE_CHECKING:
    from clpstream.conversion import Conversion
    from clpstream.output.report import Input, Report

_SECONDS_BETWEEN_LINES = 10.0


def progress_for(stream: TextIO | None, quiet: bool) -> Progress:
    """Bars on a terminal, plain lines elsewhere, nothing if `quiet` or the stream is closed."""
    if quiet or stream is None:
        return Progress()
    return Bars(stream) if stream.isatty() else Lines(stream)


class Bars(Progress):
    """tqdm bars, with what is done, the rate and the time left."""

    bars = True

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Update]:
        """See `Progress.task`."""
        from tqdm import tqdm

        in_bytes = unit == "B"
        columns, rows = os.get_terminal_size(self._stream.fileno())  # 0 in some containers and CIs
        with tqdm(
            desc=name,
            total=total,
            unit=unit if in_bytes else f" {unit}",
            unit_scale=in_bytes,
            file=self._stream,
            dynamic_ncols=columns > 0,
            ncols=columns or 80,
            nrows=rows or 24,
        ) as bar:

            def update(done: int) -> None:
                bar.update(done)

            yield update


class Lines(Progress):
    """A line when a task begins or ends, and every ten seconds in between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Update]:
        """See `Progress.task`."""
        begin = last = time.monotonic()
        done = 0

        def amount(count: int) -> str:
            return size(count) if unit == "B" else f"{count:,} {unit}"

        def update(more: int) -> None:
            nonlocal done, last
            done += more
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_LINES and done < total:
                last = now
                left = (now - begin) * (total - done) / max(done, 1)
                self._say(f"{name}: {amount(done)} of {amount(total)}, about {left:.0f} s left")

        self._say(f"{name}: {amount(total)}")
        yield update
        self._say(f"{name}: done in {time.monotonic() - begin:.1f} s")

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def summary(result: Conversion, output: Path) -> str:
    """The report for people, a few lines long."""
    report = result.report
    written = result.output is not None
    lines = [
        f"source    {_input(report.source)}, {'tied' if report.tied else 'untied'} head",
        f"helper    {_input(report.helper)}",
        *_tokens(report),
        *_tensors(report),
        *_examples(report),
        *(f"warning   {warning}" for warning in report.warnings),
    ]
    if written:
        lines.append(
            f"wrote     {output}: {size(result.bytes_to_write)} in {result.seconds:.1f} s, "
            f"peak memory {size(result.peak_memory)}"
        )
    else:
        short = " (too little)" if result.bytes_free < result.bytes_to_write else ""
        lines.append(
            f"dry run   {output}: would write {size(result.bytes_to_write)}, "
            f"{size(result.bytes_free)} are free{short}; peak memory would be about "
            f"{size(result.memory_needed)}; nothing was written"
        )
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 like disks and shards."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _input(entry: Input) -> str:
    shards = f"{entry.of_shards} shard{'s' if entry.of_shards > 1 else ''}"
    if entry.shards < entry.of_shards:
        shards = f"{entry.shards} of {shards}"
    return (
        f"{entry.name} ({entry.model_type or 'no model type'}): {entry.parameters:,} parameters, "
        f"{size(entry.bytes)} in {shards}, {entry.tokens:,} tokens"
    )


def _tokens(report: Report) -> list[str]:
    counts = report.counts
    rules = ", ".join(f"{count:,} by {rule}" for rule, count in counts.rules.items())
    method = ", ".join(
        f"{value}" if name == "method" else f"{name} {str(value).lower()}"
        for name, value in report.options.items()
        if name not in ("match", "shared", "vocab_tensors", "pass_through")
    )
    lines = [
        f"shared    {counts.shared:,} of {counts.target:,} target tokens ({rules}): rows copied",
        f"missing   {counts.missing:,}: rows made from the shared ones ({method})",
    ]
    if counts.unused:
        lines.append(f"unused    {counts.unused:,} ids without a token: mean of the shared rows")
    return lines


def _tensors(report: Report) -> list[str]:
    lines = [
        f"rewrites  {tensor.name}, {tensor.role}, {tensor.dtype} "
        f"{list(tensor.source_shape)} -> {list(tensor.target_shape)}"
        for tensor in report.vocabulary_tensors
    ]
    passing = report.pass_through
    return [
        *lines,
        f"passes    {passing.tensors:,} tensors, {size(passing.bytes)}, unchanged",
    ]


def _examples(report: Report) -> list[str]:
    if not report.examples:
        return []
    width = max(len(example.token) for example in report.examples)
    return [
        "examples  missing token <- shared tokens that weigh most in its row",
        *(
            f"          {example.token:<{width}} <- "
            + ", ".join(f"{anchor.token} {anchor.weight:.2g}" for anchor in example.anchors)
            for example in report.examples
        ),
    ]
