"""A plan and what came of it -> the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from clpstream.checkpoint import Checkpoint, fingerprint
from clpstream.device import device
from clpstream.hub import in_cache, model_name
from clpstream.new_rows import finite_words
from clpstream.origins import NO_ROW
from clpstream.output.report import (
    Chosen,
    Counts,
    Example,
    Input,
    PassThrough,
    Report,
    RewrittenTensor,
    Sharing,
    SpecialToken,
    TargetTokenizer,
    Word,
    versions,
)
from clpstream.output.side_files import left_behind
from clpstream.plan import Plan
from clpstream.transfer import NO_ANCHOR, Rows, SearchReport, Selected, Unit, blocks, mean
from clpstream.vocabulary import Vocabulary

_EXAMPLES, _WORDS_SHOWN = 12, 4
_TOKENS_SHOWN = 50


def make_report(
    plan: Plan,
    guarded: Mapping[str, Any] = MappingProxyType({}),
    target: Rows | None = None,
    search: Mapping[str, SearchReport] = MappingProxyType({}),
    findings: Sequence[str] = (),
) -> Report:
    """What clpstream.json holds; without more than `plan`, what a dry run can know of it.

    guarded: tokens that the method guarded, by the reason. target: the input embeddings as written.
    search: how nearest rows were found, where not by comparing all. findings: warnings about rows.
    """
    passing = [span for span in plan.source.tensors if span.name not in plan.new]
    return Report(
        versions=versions(),
        device=device().name,
        options=plan.options,
        source=_input(plan.source, plan.source_vocabulary),
        helper=None if plan.helper is None else _input(plan.helper, plan.helper_vocabulary),
        tokenizer=TargetTokenizer(
            name=model_name(plan.target_vocabulary.path.parent),
            sha256=_file_hash(plan.target_vocabulary),
            tokens=len(plan.target_vocabulary),
        ),
        tied=plan.tied,
        chosen=_chosen(plan),
        sharing=_sharing(plan),
        counts=_counts(plan, guarded, settled=plan.shared == "copy" or target is not None),
        search=dict(search),
        vocabulary_tensors=tuple(
            RewrittenTensor(
                new.tensor.name,
                new.tensor.role,
                new.tensor.why,
                new.tensor.span.dtype,
                new.tensor.span.shape,
                new.shape,
            )
            for new in plan.new.values()
        ),
        pass_through=PassThrough(len(passing), sum(span.length for span in passing)),
        special_tokens=_special_tokens(plan),
        files=tuple(sorted([*plan.written, *plan.copied_files])),
        left_behind=_left_behind(plan),
        examples=() if target is None else _examples(plan, target),
        warnings=(*plan.warnings, *findings),
    )


def _left_behind(plan: Plan) -> tuple[str, ...]:
    """None of a model on the Hub: what else is in the cache is an accident."""
    directory = plan.source.directory
    if in_cache(directory):
        return ()
    shards = {shard.path.name for shard in plan.source.shards}
    return tuple(left_behind(directory, plan.copied_files, shards))


def _input(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Input:
    return Input(
        name=model_name(checkpoint.directory),
        model_type=checkpoint.config.get("model_type"),
        fingerprint=fingerprint(checkpoint),
        tokenizer=_file_hash(vocabulary),
        tokens=len(vocabulary),
        parameters=sum(prod(span.shape) for span in checkpoint.tensors),
        bytes=sum(shard.size for shard in checkpoint.shards),
        shards=len(checkpoint.shards),
        of_shards=len(set(checkpoint.index["weight_map"].values())) if checkpoint.index else 1,
    )


def _file_hash(vocabulary: Vocabulary) -> str:
    return hashlib.sha256(vocabulary.path.read_bytes()).hexdigest()


def _counts(plan: Plan, guarded: Mapping[str, Any], settled: bool) -> Counts:
    """settled: whether it is known which of the shared tokens are copied."""
    origins = plan.origins
    remade = origins.anchors[origins.own[origins.own != NO_ANCHOR]]
    carried = len(np.unique(np.concatenate([origins.copied[origins.shared], remade])))
    return Counts(
        target=len(plan.target_vocabulary),
        shared=len(origins.shared) + len(remade),
        copied=len(origins.shared) if settled else None,
        remade=len(remade) if settled else None,
        missing=len(origins.combined) - len(remade),
        split=len(origins.pieces),
        unknown=len(origins.unknown),
        unused=len(origins.idle),
        anchors=len(origins.anchors),
        not_carried=len(plan.source_vocabulary) - carried,
        rules=origins.rules,
        guarded={reason: len(rows) for reason, rows in guarded.items()},
    )


def _chosen(plan: Plan) -> Chosen | None:
    if plan.mrr is None:
        return None
    ranks = {name: round(mrr, 4) for name, mrr in plan.mrr.items()}
    return Chosen(plan.method.name, plan.method.options(), ranks)


def _sharing(plan: Plan) -> Sharing | None:
    if plan.sharing is None:
        return None
    tokens = plan.origins.remade[:_TOKENS_SHOWN].tolist()
    return Sharing(
        threshold=None if plan.sharing.threshold is None else round(plan.sharing.threshold, 4),
        remade=tuple(map(plan.target_vocabulary.describe, tokens)),
    )


def _special_tokens(plan: Plan) -> tuple[SpecialToken, ...]:
    """What became of every special token, those with a role first."""
    origins, target, source = plan.origins, plan.target_vocabulary, plan.source_vocabulary
    roles: dict[int, tuple[str, ...]] = {}
    for role, token in target.roles.items():
        roles[token] = (*roles.get(token, ()), role)
    combined = set(origins.combined.tolist())

    def row(token: int) -> str:
        if (old := int(origins.copied[token])) != NO_ROW:
            return f"row of {source.describe(old)}"
        if token in combined:
            return "combined"
        if token in origins.pieces:
            return f"made from {', '.join(map(source.describe, origins.pieces[token]))}"
        return "mean row"

    special = [
        t for t, text in enumerate(target.text) if text is None and target.pieces[t] is not None
    ]
    ordered = sorted({*special, *roles}, key=lambda token: (token not in roles, token))
    return tuple(
        SpecialToken(token, target.describe(token), roles.get(token, ()), row(token))
        for token in ordered
    )


def _examples(plan: Plan, target: Rows) -> tuple[Example, ...]:
    """Missing tokens, and what their new rows are close to: often a translation."""
    origins, source = plan.origins, plan.source_embeddings.plane(0)
    missing = sorted([*origins.combined[origins.own == NO_ANCHOR].tolist(), *origins.pieces])
    tokens = [missing[place] for place in _telling(plan.target_vocabulary, missing)]
    known = finite_words(plan, [source])
    if not tokens or not len(known):
        return ()
    words = Selected(source, known)
    center = mean(words)
    rows = Unit(target, center)[np.array(tokens)]
    cosines = np.hstack([rows @ Unit(words, center)[block].T for block in blocks(words)])
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :_WORDS_SHOWN]
    return tuple(
        Example(
            token,
            plan.target_vocabulary.describe(token),
            tuple(
                Word(plan.source_vocabulary.describe(int(known[at])), round(float(line[at]), 4))
                for at in places
            ),
        )
        for token, line, places in zip(tokens, cosines, nearest.tolist(), strict=True)
    )


def _telling(vocabulary: Vocabulary, missing: list[int]) -> list[int]:
    """Places in `missing` of the tokens to show, from frequent to rare: whole words if it can be.

    Trainers give the low ids to frequent pieces.
    """

    def is_word(token: int) -> bool:
        word = (vocabulary.text[token] or b"").decode("utf-8", "replace")
        return word[:1] == " " and len(word) > 5 and word[1:].isalpha()

    words = [place for place, token in enumerate(missing) if is_word(token)]
    places = words if len(words) >= _EXAMPLES else range(len(missing))
    spread = np.linspace(0, len(places) - 1, min(_EXAMPLES, len(places))).astype(int)
    return [places[place] for place in spread.tolist()]
