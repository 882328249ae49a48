"""Whether what can be known without text tells which method makes the best rows.

    pip install ".[interop]" matplotlib
    python bench/quality/predict.py --pair models/source-en models/helper-de de.txt

For each pair, every arm below makes a target, whose loss on held-out text is the truth. Beside it
are the figures that need no text: those of `clpstream evaluate` (the source rows of hidden shared
tokens) and the target's loss on text drawn from the helper. Printed for each figure, as means over
the pairs: its rank correlation with the truth, and how many bits per byte the arm that it likes
best is behind the best one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from arms import ARMS, convert, method_of
from curves import add_pairs
from report import rank_correlation, table
from text import read_documents, sample_documents, split_documents

import clpstream

COMPARED = (
    "align copy",
    "procrustes",
    "ridge",
    "knn softmax",
    "knn sparsemax",
    "knn not centred",
    "omp k=8",
    "omp k=64",
    "clp",
    "clp clip-negative",
)
"""Arms that copy the rows of shared tokens: `evaluate` judges the rows of missing ones."""
CONTEXT = 128


@dataclass(frozen=True)
class Figures:
    """Of one arm on one pair; the smaller, the better."""

    truth: float
    figures: dict[str, float]


def figures_of(
    name: str, source: Path, helper: Path, texts: list[str], drawn: list[str]
) -> Figures:
    """Convert, score both texts, and evaluate."""
    (found,) = clpstream.evaluate(source, helper, methods=[method_of(ARMS[name])]).methods
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "target"
        convert(ARMS[name], source, helper, target)
        truth, sampled = (
            clpstream.score(target, some, context=CONTEXT, dtype="float32").bits_per_byte
            for some in (texts, drawn)
        )
    return Figures(
        truth,
        {
            "MRR of hidden tokens": -found.mrr.mean,
            "their centred cosine": -found.cosine.mean,
            "loss on text drawn from the helper": sampled,
        },
    )


def measure(source: Path, helper: Path, text: Path, size: int) -> dict[str, tuple[float, float]]:
    """(rank correlation, bits per byte behind the best arm) by figure."""
    texts = sample_documents(split_documents(read_documents(text))[1], size)
    drawn = clpstream.sample_documents(helper)
    arms = {name: figures_of(name, source, helper, texts, drawn) for name in COMPARED}
    print(f"\n{source.name} + {helper.name}:")
    for name, one in sorted(arms.items(), key=lambda item: item[1].truth):
        print(f"  {name:20} {one.truth:.3f}", *(f"{x:8.3f}" for x in one.figures.values()))
    truths = [one.truth for one in arms.values()]
    result = {}
    for figure in next(iter(arms.values())).figures:
        values = [one.figures[figure] for one in arms.values()]
        behind = truths[int(np.argmin(values))] - min(truths)
        result[figure] = rank_correlation(values, truths), behind
    return result


def main() -> None:
    """Measure the pairs that the command line names."""
    parser = argparse.ArgumentParser(description="Which figures tell the best method?")
    add_pairs(parser)
    parser.add_argument("--held-out", type=int, default=60_000, help="bytes scored (60000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = defaultdict(list)
    for source, helper, text in arguments.pair:
        for figure, both in measure(source, helper, text, arguments.held_out).items():
            found[figure].append(both)
    head = ["figure", "rank correlation, mean", "least", "bits per byte behind, mean", "most"]
    rows = []
    for figure, pairs in found.items():
        correlations, behind = zip(*pairs, strict=True)
        rows.append(
            [
                figure,
                *(f"{x:.2f}" for x in (np.mean(correlations), min(correlations))),
                *(f"{x:.3f}" for x in (np.mean(behind), max(behind))),
            ]
        )
    print("\n" + table(head, rows))


if __name__ == "__main__":
    main()
