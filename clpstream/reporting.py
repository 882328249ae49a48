"""A plan and what came of it -> the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from clpstream.checkpoint import Checkpoint, fingerprint
from clpstream.hub import model_name
from clpstream.output.report import (
    Anchor,
    Counts,
    Example,
    Input,
    PassThrough,
    Report,
    RewrittenTensor,
    versions,
)
from clpstream.output.side_files import left_behind
from clpstream.plan import Plan
from clpstream.transfer import Prepared
from clpstream.vocabulary import Vocabulary

_EXAMPLES, _ANCHORS_SHOWN, _TOKENS_NAMED = 12, 4, 10


def make_report(plan: Plan, prepared: Prepared | None = None) -> Report:
    """What clpstream.json holds; without `prepared`, what a dry run can know of it."""
    guarded = {} if prepared is None else prepared.guarded
    rewritten = plan.vocabulary_names
    passing = [span for span in plan.source.tensors if span.name not in rewritten]
    return Report(
        versions=versions(),
        options=plan.options,
        source=_input(plan.source, plan.source_vocabulary),
        helper=_input(plan.helper, plan.target_vocabulary),
        tied=plan.tied,
        counts=_counts(plan, guarded),
        vocabulary_tensors=tuple(
            RewrittenTensor(
                tensor.name,
                tensor.role,
                tensor.span.dtype,
                tensor.span.shape,
                (plan.rows, *tensor.span.shape[1:]),
            )
            for tensor in plan.tensors
        ),
        pass_through=PassThrough(len(passing), sum(span.length for span in passing)),
        files=tuple(sorted([*plan.written, *plan.copied_files])),
        left_behind=tuple(left_behind(plan.source.directory, plan.copied_files)),
        examples=() if prepared is None else _examples(plan, prepared),
        warnings=(*plan.warnings, *_guard_warnings(plan, guarded)),
    )


def _input(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Input:
    return Input(
        name=model_name(checkpoint.directory),
        model_type=checkpoint.config.get("model_type"),
        fingerprint=fingerprint(checkpoint),
        tokenizer=hashlib.sha256(vocabulary.path.read_bytes()).hexdigest(),
        tokens=len(vocabulary),
        parameters=sum(prod(span.shape) for span in checkpoint.tensors),
        bytes=sum(shard.size for shard in checkpoint.shards),
        shards=len(checkpoint.shards),
        of_shards=len(set(checkpoint.index["weight_map"].values())) if checkpoint.index else 1,
    )


def _counts(plan: Plan, guarded: Mapping[str, Any]) -> Counts:
    overlap = plan.overlap
    carried = len(np.unique(overlap.source_of[overlap.shared]))
    return Counts(
        target=len(plan.target_vocabulary),
        shared=len(overlap.shared),
        missing=len(overlap.missing),
        unused=len(overlap.unused),
        not_carried=len(plan.source_vocabulary) - carried,
        rules=overlap.rules,
        guarded={reason: len(rows) for reason, rows in guarded.items()},
    )


def _examples(plan: Plan, prepared: Prepared) -> tuple[Example, ...]:
    describe = plan.target_vocabulary.describe
    missing, anchors = plan.overlap.missing.tolist(), plan.overlap.shared.tolist()
    places = _telling(plan.target_vocabulary, missing)
    found = prepared.nearest(places, _ANCHORS_SHOWN) if places else []
    return tuple(
        Example(
            missing[place],
            describe(missing[place]),
            tuple(
                Anchor(describe(anchors[index]), round(float(weight), 4))
                for index, weight in zip(indices, weights, strict=True)
            ),
        )
        for place, (indices, weights) in zip(places, found, strict=True)
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


def _guard_warnings(plan: Plan, guarded: Mapping[str, Any]) -> list[str]:
    warnings = []
    for reason, rows in guarded.items():
        if len(rows):
            tokens = plan.overlap.missing[rows[:_TOKENS_NAMED]].tolist()
            names = [plan.target_vocabulary.describe(token) for token in tokens]
            more = ", ..." if len(rows) > _TOKENS_NAMED else ""
            warnings.append(
                f"guarded ({plan.method.name}: {reason}): {len(rows):,} of the missing tokens: "
                f"{', '.join(names)}{more}"
            )
    return warnings
