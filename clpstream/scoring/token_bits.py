"""The bits of every token of some documents: windows in batches through a language model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from clpstream.progress import Progress
from clpstream.scoring.language_model import LanguageModel
from clpstream.scoring.windows import Window, windows

_BATCH_TOKENS = 2048

Ids = npt.NDArray[np.int32]
Bits = npt.NDArray[np.float64]


def token_bits(
    model: LanguageModel,
    documents: Sequence[Ids],
    first: int | None,
    context: int,
    stride: int,
    progress: Progress,
) -> list[Bits]:
    """-log2 of the probability of each token, in the order of the documents: float64 [tokens] each.

    first: the token before a document. Every window begins with it, also those further in: models
    that are trained with it in front of any text (Gemma) predict nothing sensible without. If there
    is none, the first token of a document costs log2 of the number of tokens, a plain guess.
    """
    rows = [ids if first is None else np.concatenate([[first], ids]) for ids in documents]
    # a place without a prediction is NaN to the end, so that none is taken for a number
    found = [np.full(len(ids), np.nan) for ids in documents]
    todo = [
        window
        for place, row in enumerate(rows)
        for window in windows(place, len(row) - 1, context, stride)
    ]
    unseen = int(first is None)  # tokens of a document that nothing comes before
    for of_document in found:
        of_document[:unseen] = math.log2(model.logits)
    tokens = sum(window.end - window.scored for window in todo)
    with progress.task("scoring", tokens, "tokens") as update:
        for batch in _batches(model, todo):
            skip = min(window.scored - window.begin for window in batch)
            of_batch = _bits(model, rows, batch, first, skip)
            for window, bits in zip(batch, of_batch, strict=True):
                new = slice(window.scored + unseen, window.end + unseen)
                found[window.document][new] = bits[window.scored - window.begin : window.length]
            update(sum(window.end - window.scored for window in batch))
    return found


def _bits(
    model: LanguageModel, rows: Sequence[Ids], batch: Sequence[Window], first: int | None, skip: int
) -> Bits:
    """Bits of all tokens of some windows: [windows, length of the longest]."""
    # what stands behind the end of a shorter window is not seen by a causal model before the end
    inputs = np.zeros((len(batch), max(window.length for window in batch)), np.int64)
    targets = np.zeros_like(inputs)
    for place, window in enumerate(batch):
        row = rows[window.document]
        inputs[place, : window.length] = row[window.begin : window.end]
        targets[place, : window.length] = row[window.begin + 1 : window.end + 1]
        if first is not None:
            inputs[place, 0] = first
    return model.bits(inputs, targets, skip)


def _batches(model: LanguageModel, todo: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows of like shape together, the longest first: if memory is short, it is so at once."""
    left = sorted(todo, key=lambda window: (-window.length, window.scored - window.begin))
    begin = 0
    while begin < len(left):
        length = left[begin].length
        count = min(model.windows_at_once(length), max(1, _BATCH_TOKENS // length))
        yield left[begin : begin + count]
        begin += count
