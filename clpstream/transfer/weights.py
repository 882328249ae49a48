"""Scores of the nearest anchors -> weights. Every row of weights sums to 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clpstream.transfer.rows import Doubles, Floats

Scores = Floats | Doubles


def similarity(scores: Scores) -> Doubles:
    """Proportional to the score: CLP-Transfer (arXiv 2301.09626) with negative scores as 0.

    `scores` (n, k) -> weights (n, k). A row without a positive score gets equal weights, but for
    scores of -inf, which get 0.
    """
    positive = np.maximum(scores, 0).astype(np.float64)
    total = positive.sum(axis=1, keepdims=True)
    counted = scores > -np.inf
    weights: Doubles = counted / counted.sum(axis=1, keepdims=True)
    np.divide(positive, total, out=weights, where=total > 0)
    return weights


def softmax(scores: Scores, temperature: float) -> Doubles:
    """exp(s / T) / sum of exp(s / T), as in WECHSEL (arXiv 2112.06598).

    `scores` (n, k) -> weights (n, k).
    """
    shifted = (scores - scores.max(axis=1, keepdims=True)).astype(np.float64) / temperature
    weights: Doubles = np.exp(shifted)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def sparsemax(scores: Scores) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Euclidean projection onto the simplex (Martins & Astudillo 2016, arXiv 1602.02068).

    Used by FOCUS (arXiv 2305.14481) and CLP+ (arXiv 2402.10712). `scores` (n, k), each row in
    falling order -> weights (n, k), and whether a row is exact: whether further scores, all at
    most the k-th, could not get a weight either.
    """
    exact = scores.astype(np.float64)
    ranks = np.arange(1, scores.shape[1] + 1)
    sums = exact.cumsum(axis=1)
    support = (1 + ranks * exact > sums).sum(axis=1)
    threshold = (np.take_along_axis(sums, support[:, None] - 1, axis=1)[:, 0] - 1) / support
    return np.maximum(exact - threshold[:, None], 0), exact[:, -1] <= threshold


def sparsemax_threshold(scores: Scores) -> Doubles:
    """What sparsemax subtracts from the scores (n, k), in any order: (n,).

    By the fixed point tau = (sum of the scores above tau - 1) / their number, from below (Michelot
    1986), which needs no sorting.
    """
    threshold: Doubles = (scores.sum(axis=1, dtype=np.float64) - 1) / scores.shape[1]
    while True:
        above = scores > threshold[:, None]
        sums = np.where(above, scores, 0).sum(axis=1, dtype=np.float64)
        better = (sums - 1) / above.sum(axis=1)
        if (better <= threshold).all():
            return threshold
        threshold = np.maximum(threshold, better)
