"""How well each method would make rows for two models: rows that are known, hidden from it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clpstream.checkpoint import input_embeddings, input_embeddings_names, open_checkpoint
from clpstream.checks import check_helper, check_source
from clpstream.device import CPU, find, on_device
from clpstream.errors import TransferError, check_list
from clpstream.hub import local_directory, model_name
from clpstream.memory import (
    allowance,
    check_limit,
    fitting,
    peak_memory,
    resident_memory,
    room_above,
)
from clpstream.origins import find_origins
from clpstream.plan import frequent_words, method_of
from clpstream.progress import Progress
from clpstream.transfer import METHODS, Method
from clpstream.transfer.held_out import FEWEST, Figures, Spaces, chance, draw, measure
from clpstream.vocabulary import Match, read_vocabulary

EVALUATED = tuple(name for name in METHODS if name != "subword")
"""Of `subword`, the rows come from pieces; and a token that the source has is a piece itself."""
_MOST_REPEATS = 1000


@dataclass(frozen=True)
class Figure:
    """A mean over the repeats, and its standard deviation (ddof 1); None of one repeat."""

    mean: float
    spread: float | None


@dataclass(frozen=True)
class Evaluated:
    """A method and what came of it.

    mrr: mean reciprocal rank of the true row. cosine: with the true row, both less the mean of the
    known anchors' rows. norm_ratio: the median of |made| / |true|. See `transfer.held_out.judge`.
    seconds: to prepare the method and make the hidden rows. memory_needed: the method's estimate of
    what a conversion takes, in bytes: what is resident can't be told apart by method in one
    process, where one reuses what another has freed.
    """

    method: str
    options: Mapping[str, Any]
    mrr: Figure
    cosine: Figure
    norm_ratio: Figure
    seconds: Figure
    memory_needed: int


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    anchors: tokens that both models have. hidden: of these, in each repeat. candidates: source rows
    among which a hidden anchor's row is looked for. missing: tokens that a conversion makes rows
    for. chance: the mean reciprocal rank of rows that tell nothing. methods: the one with the
    largest mean reciprocal rank first. device: "cpu", or the GPU that was used, and by what.
    seconds, peak_memory (bytes, resident): of the whole run.
    """

    source: str
    helper: str
    match: str
    seed: int
    repeats: int
    anchors: int
    hidden: int
    candidates: int
    missing: int
    chance: float
    methods: tuple[Evaluated, ...]
    device: str
    warnings: tuple[str, ...]
    seconds: float
    peak_memory: int

    @property
    def best(self) -> Evaluated:
        """The method with the largest mean reciprocal rank."""
        return self.methods[0]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**asdict(self), "best": self.best.method}


def evaluate(
    source: str | Path,
    helper: str | Path,
    *,
    methods: Sequence[str | Method] = (),
    match: Match = "bytes",
    repeats: int = 3,
    seed: int = 0,
    vocab_tensors: Collection[str] = (),
    max_memory: int | None = None,
    device: str = CPU,
    progress: Progress | None = None,
) -> Evaluation:
    """Hide a tenth of the shared tokens from each method, and see how well it makes their rows.

    It is done for the source's input embeddings, `repeats` times with another tenth, 1,000 tokens
    at most, the same for all methods. A row that is made is looked for among those of the hidden
    tokens and of some others, 4,000 in all at most.

    source, helper: directories or ids on the Hub, as for `convert`; of both, only the shard with
    the input embeddings is fetched, unless vocab_tensors are given.
    methods: names or objects; all that there are if none is given.
    match, vocab_tensors, max_memory, device: as for `convert`. seed: of the choice of tokens.

    Raises a ClpstreamError that says what is wrong: TransferError for arguments out of range, too
    few shared tokens, and rows with NaN or Inf.
    """
    begin, start = time.monotonic(), resident_memory()
    check_list("methods", methods, "names or objects", TransferError)
    check_list("vocab_tensors", vocab_tensors, "names", TransferError)
    check_limit(max_memory)
    rules = [method_of(method, EVALUATED) for method in methods or EVALUATED]
    _check_count("repeats", repeats, 1, _MOST_REPEATS)
    _check_count("seed", seed, 0, (1 << 64) - 1)
    progress, found_device = progress or Progress(), find(device)
    # a tensor that the user names can be in any shard
    big = local_directory(source, "source" if vocab_tensors else "embeddings", progress)
    small = local_directory(helper, "embeddings", progress)
    spaces, warnings = _spaces(big, small, match, vocab_tensors)
    figures: list[list[Figures]] = [[] for _ in rules]
    known, hidden, candidates = 0, 0, 0
    total = repeats * len(rules)
    limit, most = allowance(max_memory, room_above(start))
    allowed = most - (resident_memory() - start)
    with (
        progress.task("hidden tokens", total, "trials") as update,
        np.errstate(all="ignore"),
        on_device(found_device),
    ):
        for repeat in range(repeats):
            drawn = draw(spaces, seed, repeat)
            known, hidden = len(drawn.known), len(drawn.hidden)
            candidates = hidden + len(drawn.others)
            for found, rule in zip(figures, rules, strict=True):
                with fitting(partial(_needed, rule, spaces, known, hidden), limit, allowed):
                    found.append(measure(rule, spaces, drawn))
                update(1)
    evaluated = [
        _evaluated(rule, found, spaces) for rule, found in zip(rules, figures, strict=True)
    ]
    return Evaluation(
        source=model_name(big),
        helper=model_name(small),
        match=match,
        seed=seed,
        repeats=repeats,
        anchors=len(spaces.anchors),
        hidden=hidden,
        candidates=candidates,
        missing=len(spaces.missing),
        chance=chance(candidates),
        methods=tuple(sorted(evaluated, key=lambda one: -one.mrr.mean)),
        device=found_device.name,
        warnings=(*warnings, *_short(rules, spaces, known)),
        seconds=time.monotonic() - begin,
        peak_memory=peak_memory(),
    )


def choose(spaces: Spaces, names: Sequence[str], progress: Progress) -> dict[str, float]:
    """The mean reciprocal rank by method, the largest first: of one repeat, with the seed 0.

    Of the methods named, those that have enough anchors without the hidden ones; of equal ones the
    first named goes first. Empty if the anchors are too few to hide any.
    """
    if len(np.unique(spaces.anchors)) < FEWEST:
        return {}
    drawn = draw(spaces, 0, 0)
    widths = spaces.helper.shape[1], spaces.source.shape[1]
    rules = [METHODS[name]() for name in names]
    rules = [rule for rule in rules if rule.fewest(*widths) <= len(drawn.known)]
    found = {}
    with progress.task("choosing a method", len(rules), "methods") as update:
        for rule in rules:
            found[rule.name] = measure(rule, spaces, drawn).mrr
            update(1)
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def _check_count(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise TransferError(f"{name} is {value!r}; it must be a number from {least} to {most}")


def _spaces(
    source: Path, helper: Path, rule: Match, vocab_tensors: Collection[str]
) -> tuple[Spaces, tuple[str, ...]]:
    """What the methods are tried on, and what is odd about the vocabularies."""
    big = open_checkpoint(source, only=None if vocab_tensors else input_embeddings_names)
    small = open_checkpoint(helper, only=input_embeddings_names)
    theirs, ours = input_embeddings(big, vocab_tensors), input_embeddings(small)
    old, known = read_vocabulary(big.directory), read_vocabulary(small.directory)
    check_helper(ours, known)
    check_source([theirs], old)
    origins = find_origins(
        old, known, known, source_rows=theirs.rows, helper_rows=ours.rows, rule=rule
    )
    spaces = Spaces(
        helper=ours.plane(0),
        source=theirs.plane(0),
        anchors=origins.anchors,
        anchor_rows=origins.anchor_rows,
        missing=origins.helper_rows,
        words=frequent_words(old, theirs.rows),
    )
    return spaces, (*old.notes, *known.notes)


def _evaluated(method: Method, found: Sequence[Figures], spaces: Spaces) -> Evaluated:
    def over_repeats(name: str) -> Figure:
        values = [getattr(figures, name) for figures in found]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Figure(float(np.mean(values)), spread)

    return Evaluated(
        method=method.name,
        options=method.options(),
        mrr=over_repeats("mrr"),
        cosine=over_repeats("cosine"),
        norm_ratio=over_repeats("norm_ratio"),
        seconds=over_repeats("seconds"),
        memory_needed=_needed(method, spaces, len(spaces.anchors), len(spaces.missing)),
    )


def _needed(method: Method, spaces: Spaces, anchors: int, wanted: int) -> int:
    return method.working_bytes(anchors, wanted, spaces.helper.shape[1], spaces.source.shape[1])


def _short(methods: Sequence[Method], spaces: Spaces, known: int) -> list[str]:
    """Warnings for methods that would want more anchors than were left."""
    widths = spaces.helper.shape[1], spaces.source.shape[1]
    return [
        f"{method.name} was shown {known:,} tokens, and wants {method.fewest(*widths):,} at least: "
        "its figures say little"
        for method in methods
        if known < method.fewest(*widths)
    ]
