"""The pipeline: two checkpoints -> two vocabularies -> overlap -> method -> target directory.

`plan` finds out everything that will happen, from headers and tokenizers alone; `convert` makes
it happen.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clpstream.checkpoint import TensorSpan, read_ahead
from clpstream.choosing import with_method
from clpstream.device import CPU, find, on_device
from clpstream.errors import NotFiniteError, OutputError, TransferError, check_list
from clpstream.findings import guard_warnings, row_warnings, search_warnings
from clpstream.hub import cache_entry, local_directory
from clpstream.memory import (
    allowance,
    check_limit,
    fitting,
    give_back,
    lean,
    peak_memory,
    resident_memory,
    return_at_once,
    room_above,
)
from clpstream.new_rows import Outliers, new_rows
from clpstream.output.copying import LinkMode
from clpstream.output.files import json_bytes, write_file
from clpstream.output.report import REPORT_FILE, Report
from clpstream.output.staging import check_place, check_replaceable, check_space, free_bytes, staged
from clpstream.output.verify import verify
from clpstream.output.writing import check_clones, writing
from clpstream.plan import AUTO, Pieces, Plan, Shared, make_plan, reads_helper
from clpstream.progress import Progress
from clpstream.reporting import make_report
from clpstream.sharing import guarded, prepare, searches, settle
from clpstream.transfer import METHODS, Method
from clpstream.vocabulary import Match

_MANY = 32
"""Where one row of so many is read, reading all of them in one go costs less."""


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`.

    output: the target directory; None after a dry run.
    report: what clpstream.json holds.
    bytes_to_write: size of all files of the target.
    bytes_free: on the file system of the target, before writing.
    memory_needed: estimate of the peak resident memory, in bytes.
    seconds, peak_memory (bytes): measured.
    """

    output: Path | None
    report: Report
    bytes_to_write: int
    bytes_free: int
    memory_needed: int
    seconds: float
    peak_memory: int

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values: the report's, and what is particular to this run."""
        return {
            "output": None if self.output is None else str(self.output),
            **self.report.to_json(),
            "bytes_to_write": self.bytes_to_write,
            "bytes_free": self.bytes_free,
            "memory_needed": self.memory_needed,
            "seconds": round(self.seconds, 3),
            "peak_memory": self.peak_memory,
        }


def convert(
    source: str | Path,
    helper: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    method: str | Method = "align",
    match: Match = "bytes",
    shared: Shared = "auto",
    map_tokens: Mapping[str, str] | None = None,
    pieces: Pieces | None = None,
    pad_to_multiple_of: int = 1,
    vocab_tensors: Collection[str] = (),
    pass_through: Collection[str] = (),
    link_mode: LinkMode = "auto",
    max_memory: int | None = None,
    device: str = CPU,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write to `output` the source checkpoint with the helper's vocabulary.

    source, helper: directories of Hugging Face checkpoints, or as str the ids of models on the
    Hub, ORG/NAME or ORG/NAME@REVISION: of these, what is needed is fetched into the Hub's cache.
    output: a directory that is not there yet, or that `overwrite` lets this replace; it appears
    only once it is whole.
    tokenizer: directory or id of the target's tokenizer, where it is not the helper's. Its tokens
    that neither source nor helper has are made from the source tokens that they split into.
    method: a name of `clpstream.transfer.METHODS`, or an object such as Knn(neighbors=5); or
    "auto", the one of `clpstream.plan.CHOICES` that makes rows best that are known (`evaluate`).
    match: how tokens are matched, see `clpstream.match`.
    shared: what becomes of tokens that both vocabularies have. "copy" keeps their source rows, bit
    for bit; "map" makes the rows of words and parts of words as if they were missing; "auto" those
    of another language of which the models' rows don't agree. Symbols, numbers, bytes and special
    tokens are copied.
    map_tokens: target token -> the source token whose row it gets, or text that the source splits.
    pieces: how a row is made from those of several source tokens: "mean" (the default); "ends", the
    last for input embeddings and the first for output heads; or "first" (the default of "subword"),
    the mean, but for output heads half as much of each after the first.
    pad_to_multiple_of: the number of rows is rounded up to a multiple of this.
    vocab_tensors, pass_through: names of source tensors that clpstream can't tell by itself.
    link_mode: what becomes of shards that don't change. "auto": a clone, which shares blocks until
    one is written to, where the file system has that, else a copy. "copy" or "reflink": that, or
    an error. "hardlink": the source's own file under a second name.
    max_memory: bytes that the run may take above the interpreter and its libraries. Without it,
    blocks are sized for 512 MiB, and a method takes more for its matrices where it must; but no
    more than the machine or its container has.
    device: where large products are made: "cpu"; "cuda" or "cuda:N", a GPU that torch, CuPy or a
    build of FAISS for GPUs can use; "auto", such a GPU if there is one. What it makes is the same
    but for rounding.
    dry_run: find out what would happen, and write nothing (but to the Hub's cache).

    Raises a ClpstreamError that says what is wrong and what to do; nothing is left behind then.
    """
    begin, start = time.monotonic(), resident_memory()
    if not os.fspath(output):
        raise OutputError("the output's name is empty; give the directory to write")
    output = Path(os.path.normpath(output))  # 'new/../x' would leave 'new' behind
    progress = progress or Progress()
    check_list("vocab_tensors", vocab_tensors, "names", TransferError)
    check_list("pass_through", pass_through, "names", TransferError)
    check_limit(max_memory)
    check_place(output, [], overwrite)  # before anything is fetched
    found = find(device)
    plan = make_plan(
        local_directory(source, "source", progress),
        local_directory(helper, "helper" if reads_helper(method) else "tokenizer", progress),
        tokenizer=None if tokenizer is None else local_directory(tokenizer, "tokenizer", progress),
        method=method,
        match_by=match,
        shared=shared,
        map_tokens=map_tokens,
        pieces=pieces,
        pad_to_multiple_of=pad_to_multiple_of,
        vocab_tensors=vocab_tensors,
        pass_through=pass_through,
        link_mode=link_mode,
    )
    give_back()
    taken = max(_held_bytes(plan), resident_memory() - start)
    peak = peak_memory()
    check_place(output, [cache_entry(directory) for directory in plan.inputs], overwrite)
    check_replaceable(output)
    free = free_bytes(output)
    room = room_above(start)
    limit, most = allowance(max_memory, room)
    allowed = most - taken
    within = fitting(lambda: plan.working_bytes, limit, allowed, plan.bytes_to_write)
    with within, on_device(found):
        working = plan.working_bytes
        needed = taken + working
        if working > allowed:
            raise TransferError(_too_much(plan, needed, allowed, room, max_memory))
        check_space(output, plan.bytes_to_write, free)
        if dry_run:
            if link_mode == "reflink":
                check_clones(plan.shards, output)
            report = make_report(plan)
        else:
            try:
                with staged(output, overwrite) as stage:
                    report = _write(plan, stage, progress)
            except OSError as error:
                raise OutputError(
                    f"{output}: can't be written: {error.strerror or error}; make room, or choose "
                    "another output"
                ) from None
    return Conversion(
        output=None if dry_run else output,
        report=report,
        bytes_to_write=plan.bytes_to_write,
        bytes_free=free,
        memory_needed=max(start + needed, peak),
        seconds=time.monotonic() - begin,
        peak_memory=peak_memory(),
    )


def _held_bytes(plan: Plan) -> int:
    """About what a plan takes. It is a little more than what is measured, which differs from run to
    run: blocks, on which the last bits of sums depend, must not."""
    vocabularies = [plan.source_vocabulary, plan.helper_vocabulary]
    if plan.target_vocabulary is not plan.helper_vocabulary:
        vocabularies.append(plan.target_vocabulary)
    checkpoints = [plan.source] if plan.helper is None else [plan.source, plan.helper]
    tensors = sum(len(shard.tensors) for one in checkpoints for shard in one.shards)
    return 200 * sum(vocabulary.size for vocabulary in vocabularies) + 720 * tensors


def _too_much(plan: Plan, needed: int, allowed: int, room: int, max_memory: int | None) -> str:
    """What is wrong and what to do where a method needs more bytes than there may be: `needed` in
    all, where `allowed` are left for what the method does."""
    method = AUTO if plan.automatic else plan.method.name
    if max_memory is None:
        limit = f"this machine or its container leaves {room / 2**20:,.0f} MiB; give it more"
        otherwise = ", or try all the same with a --max-memory of more"
    else:
        limit = f"{max_memory / 2**20:,.0f} MiB are allowed; allow more with --max-memory"
        otherwise = ""
    copying = replace(plan, shared="copy", automatic=False)
    others = [
        name
        for name in ("knn", "clp", "mean")
        if (name, "copy") != (method, plan.shared)  # with other parameters, it may be
        and copying.with_method(METHODS[name]()).working_bytes <= allowed
    ]
    if others:
        copy = "" if plan.shared == "copy" else " with --shared copy"
        otherwise = f", or choose --method {' or '.join(others)}{copy}{otherwise}"
    return (
        f"{method} needs about {needed / 2**20:,.0f} MiB for these models, and {limit}{otherwise}"
    )


@np.errstate(all="ignore")  # the error for a row that is not finite says more than a warning
def _write(plan: Plan, stage: Path, progress: Progress) -> Report:
    if lean():
        return_at_once()
    with _naming_tokens(plan):
        outliers: Outliers = {}
        read_ahead(_scattered(plan))
        with (
            progress.task("writing", plan.shard_bytes, "B") as update,
            writing(stage, plan.shards, plan.link_mode, update) as target_shards,
        ):
            settled = settle(with_method(plan, progress), progress)
            prepared = prepare(settled, progress)
            new = [place.new for place in target_shards.new]
            rows_of = new_rows(settled, prepared, new, outliers)
            for place, blocks in zip(target_shards.new, rows_of, strict=True):
                target_shards.write(place, blocks)
        spared = guarded(prepared)
        search = searches(prepared)
        findings = [
            *guard_warnings(settled, spared),
            *search_warnings(search),
            *row_warnings(settled, outliers),
        ]
    for name, content in plan.written.items():
        write_file(stage / name, json_bytes(content))
    for name, path in plan.copied_files.items():
        write_file(stage / name, path.read_bytes())
    spans = verify(stage, plan.source, plan.new)
    source = plan.source_embeddings
    rows = replace(source, span=spans[source.name]).plane(0)
    report = make_report(settled, spared, rows, search, findings)
    write_file(stage / REPORT_FILE, json_bytes(report.to_json()))
    return report


def _scattered(plan: Plan) -> list[TensorSpan]:
    """The tensors of which many rows are going to be read: those of the helper, which is read
    first, and of the source, unless it shares next to nothing with the target."""
    return [table.span for table in plan.helper_tables] + [
        new.tensor.span
        for new in plan.new.values()
        if len(plan.origins.anchors) * _MANY > new.tensor.rows
    ]


@contextlib.contextmanager
def _naming_tokens(plan: Plan) -> Iterator[None]:
    """Errors of rows know the row; say whose token it is."""
    try:
        yield
    except NotFiniteError as error:
        from_helper = error.where in [str(table.span) for table in plan.helper_tables]
        vocabulary = plan.helper_vocabulary if from_helper else plan.source_vocabulary
        if error.row >= vocabulary.size:  # a row behind the vocabulary
            raise
        token = vocabulary.describe(error.row)
        raise NotFiniteError(error.where, error.row, error.what, token) from None
