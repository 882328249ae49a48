"""What people see: progress while a conversion runs, and a summary at its end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from clpstream.progress import Progress, Update

if TYPE_CHECKING:
    from clpstream.conversion import Conversion
    from clpstream.inspection import InspectedTensor, InspectedTokenizer, Inspection
    from clpstream.output.report import Chosen, Input, Report

_SECONDS_BETWEEN_LINES = 10.0
_SPECIAL_SHOWN = 12
_LEFT_SHOWN = 6
_REMADE_SHOWN = 6
_NOT_OF_THE_METHOD = (
    *("match", "shared", "map_tokens", "pieces", "pad_to_multiple_of"),
    *("vocab_tensors", "pass_through"),
)
"""Options that say nothing about how missing rows are made."""


def progress_for(stream: TextIO | None, quiet: bool) -> Progress:
    """Bars on a terminal that can move its cursor, plain lines elsewhere, nothing if `quiet` or the
    stream is closed."""
    if quiet or stream is None:
        return Progress()
    bars = stream.isatty() and os.environ.get("TERM") != "dumb"
    return Bars(stream) if bars else Lines(Lossy(stream))


class Lossy:
    """A stream of which nobody may be left to read it, or whose disk may be full: what is said
    there is lost, and the work is done all the same."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """As of any stream."""
        self._tried(lambda: self._stream.write(text))

    def flush(self) -> None:
        """As of any stream."""
        self._tried(self._stream.flush)

    def _tried(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError:
            silence(self._stream)


def silence(stream: TextIO) -> None:
    """Have what is written to a stream from here on go nowhere, with what its buffers hold."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


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
            file=Lossy(self._stream),
            dynamic_ncols=columns > 0,
            ncols=columns or 80,
            nrows=rows or 24,
        ) as bar:

            def update(done: int) -> None:
                bar.update(done)

            yield update


class Lines(Progress):
    """A line when a task begins or ends, and every ten seconds in between."""

    def __init__(self, stream: TextIO | Lossy) -> None:
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
        f"helper    {_input(report.helper) if report.helper else 'not read by this method'}",
        *_target_tokenizer(report),
        *_tokens(report),
        *_tensors(report),
        *_search(report),
        *_special(report),
        *_examples(report),
        *_left_behind(report),
        *(f"warning   {warning}" for warning in report.warnings),
    ]
    if written:
        lines.append(
            f"wrote     {output}: {size(result.bytes_to_write)} in {result.seconds:.1f} s, "
            f"peak memory {size(result.peak_memory)}"
        )
    else:
        lines.append(
            f"dry run   {output}: would write {size(result.bytes_to_write)}, "
            f"{size(result.bytes_free)} are free; peak memory would be about "
            f"{size(result.memory_needed)}; nothing was written"
        )
    return "\n".join(map(printable, lines))


def description(found: Inspection) -> str:
    """A model for people, on one screen."""
    lines = [
        f"model     {found.model}: {found.model_type or 'no model type'}"
        + (f", {', '.join(found.architectures)}" if found.architectures else ""),
        f"weights   {found.parameters:,} parameters, {size(found.bytes)} in "
        f"{_shards(found.shards)}: "
        + ", ".join(f"{dtype} {count:,}" for dtype, count in found.dtypes.items())
        + (f"; quantised by {found.quantisation}" if found.quantisation else ""),
        *(_inspected(tensor) for tensor in found.vocabulary_tensors),
    ]
    if found.tied is not None:
        lines.append(f"head      {'tied' if found.tied else 'untied'}")
    if found.config_sizes:
        sizes = ", ".join(f"{key} {value:,}" for key, value in found.config_sizes.items())
        lines.append(f"config    {sizes}")
    if found.tokenizer is not None:
        lines += _tokenizer(found.tokenizer)
    lines += [
        f"source    {found.as_source or 'can be one'}",
        f"helper    {found.as_helper or 'can be one'}",
        *(f"warning   {warning}" for warning in found.warnings),
    ]
    return "\n".join(map(printable, lines))


def _inspected(tensor: InspectedTensor) -> str:
    same = f"; same bytes as {tensor.same_as}" if tensor.same_as else ""
    shape = list(tensor.shape)
    return f"tensor    {tensor.name}, {tensor.role}, {tensor.dtype} {shape}: {tensor.why}{same}"


def _tokenizer(found: InspectedTokenizer) -> list[str]:
    roles: dict[int, list[str]] = {}
    for role, token in found.roles.items():
        roles.setdefault(token, []).append(role)
    order = [*roles, *(token for token in found.special if token not in roles)]
    names = [f"{_roles(roles.get(t, ()))}{found.special.get(t, t)} {t}" for t in order]
    more = f", and {len(names) - _SPECIAL_SHOWN:,} more" if len(names) > _SPECIAL_SHOWN else ""
    return [
        f"tokenizer {found.file}, {found.kind}: {found.tokens:,} tokens, ids below {found.size:,}",
        f"special   {', '.join(names[:_SPECIAL_SHOWN]) or 'none'}{more}",
    ]


def _shards(count: int) -> str:
    return f"{count} shard{'' if count == 1 else 's'}"


def printable(line: str) -> str:
    """A line that does nothing to a terminal, whatever names of files and tokens have in them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 like disks and shards."""
    for unit in ("B", "kB", "MB", "GB"):
        text = f"{count:.0f}" if unit == "B" else f"{count:.1f}"
        if float(text) < 1000:
            return f"{text} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _input(entry: Input) -> str:
    shards = _shards(entry.of_shards)
    if entry.shards < entry.of_shards:
        shards = f"{entry.shards} of {shards}"
    return (
        f"{entry.name} ({entry.model_type or 'no model type'}): {entry.parameters:,} parameters, "
        f"{size(entry.bytes)} in {shards}, {entry.tokens:,} tokens"
    )


def _target_tokenizer(report: Report) -> list[str]:
    own = report.tokenizer
    if report.helper and (own.name, own.sha256) == (report.helper.name, report.helper.tokenizer):
        return []
    return [f"tokenizer {own.name}: {own.tokens:,} tokens"]


def _tokens(report: Report) -> list[str]:
    counts = report.counts
    rules = ", ".join(f"{count:,} by {rule}" for rule, count in counts.rules.items())
    method = ", ".join(
        f"{value}" if name == "method" else f"{name} {str(value).lower()}"
        for name, value in report.options.items()
        if name not in _NOT_OF_THE_METHOD
    )
    lines = [
        f"shared    {counts.shared:,} of {counts.target:,} target tokens ({rules}): "
        + _copied(report),
    ]
    if counts.missing or not counts.split:
        lines.append(f"missing   {counts.missing:,}: rows made from the shared ones ({method})")
    if report.chosen is not None:
        lines.append(_chosen(report.chosen))
    if counts.split:
        how = "" if counts.missing else f" ({method})"
        lines.append(
            f"split     {counts.split:,}: rows made from the source tokens they split into{how}"
        )
    if counts.unknown:
        lines.append(f"unknown   {counts.unknown:,}: the mean of the shared rows")
    if counts.unused:
        lines.append(
            f"unused    {counts.unused:,} ids without a token: rows as the source's own such rows, "
            "or the mean row"
        )
    return lines


def _chosen(chosen: Chosen) -> str:
    ranks = ", ".join(f"{name} {mrr:.3f}" for name, mrr in chosen.mrr.items())
    why = f": mean reciprocal rank of hidden shared tokens: {ranks}" if ranks else ""
    return f"chosen    {chosen.method}{why}"


def _copied(report: Report) -> str:
    """What became of the shared tokens' rows."""
    counts, sharing = report.counts, report.sharing
    if counts.copied is None or counts.remade is None:
        return "rows copied, or made where the models disagree"
    if sharing is None:
        return "rows copied"
    some = ", ".join(sharing.remade[:_REMADE_SHOWN])
    more = ", ..." if counts.remade > _REMADE_SHOWN else ""
    named = f": {some}{more}" if some else ""
    if sharing.threshold is None:
        return f"{counts.copied:,} rows copied, {counts.remade:,} made{named}"
    return (
        f"{counts.copied:,} rows copied, {counts.remade:,} made, since source and helper agree "
        f"less than {sharing.threshold:.2f} on them{named}"
    )


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


def _left_behind(report: Report) -> list[str]:
    names = report.left_behind
    more = f", and {len(names) - _LEFT_SHOWN:,} more" if len(names) > _LEFT_SHOWN else ""
    return [f"leaves    {', '.join(names[:_LEFT_SHOWN])}{more}"] if names else []


def _search(report: Report) -> list[str]:
    return [
        f"search    {found.index}: {found.candidates:,} candidates a token hold {found.recall:.1%} "
        f"of its {found.neighbors} nearest (measured on {found.sample:,} tokens)"
        for found in report.search.values()
    ]


def _special(report: Report) -> list[str]:
    tokens = report.special_tokens  # those with a role first
    shown = tokens[:_SPECIAL_SHOWN]
    if not shown:
        return []
    width = max(len(token.token) for token in shown)
    lines = [
        f"          {token.token:<{width}} {_roles(token.roles)}<- {token.row}" for token in shown
    ]
    more = len(tokens) - len(shown)
    rest = f" ({more:,} more in clpstream.json)" if more else ""
    return [f"special   token <- what its row is{rest}", *lines]


def _roles(roles: Sequence[str]) -> str:
    return f"({', '.join(roles)}) " if roles else ""


def _examples(report: Report) -> list[str]:
    if not report.examples:
        return []
    width = max(len(example.token) for example in report.examples)
    return [
        "examples  missing token <- words of the source that its new row is closest to",
        *(
            f"          {example.token:<{width}} <- "
            + ", ".join(f"{word.token} {word.cosine:.2f}" for word in example.words)
            for example in report.examples
        ),
    ]
