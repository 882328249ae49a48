"""Data for the methods, and their formulas written out in float64 numpy."""

from __future__ import annotations

import numpy as np


def helper_and_source(anchors=300, missing=120, d_helper=24, d_source=40, shift=1.0, seed=0):
    """Rows as language models have them: clusters, and a mean that all rows share."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((20, d_helper))
    kinds = generator.integers(0, 20, anchors + missing)
    rows = centers[kinds] + 0.5 * generator.standard_normal((anchors + missing, d_helper))
    rows = (rows + shift * generator.standard_normal(d_helper)).astype(np.float32)
    source = generator.standard_normal((anchors, d_source)).astype(np.float32)
    return rows[:anchors], rows[anchors:], source


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cosines(anchors, missing, center):
    """(missing, anchors) in float64."""
    anchors, missing = anchors.astype(np.float64), missing.astype(np.float64)
    mean = anchors.mean(axis=0) if center else 0
    return unit(missing - mean) @ unit(anchors - mean).T


def sparsemax_by_bisection(scores):
    """The projection onto the simplex, found without its closed form."""
    low, high = scores.max() - 1, scores.max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(scores - middle, 0).sum() > 1:
            low = middle
        else:
            high = middle
    return np.maximum(scores - high, 0)


def knn_reference(anchors, missing, source, k, weights, temperature, center):
    scores = cosines(anchors, missing, center)
    rows = []
    for row in scores:
        nearest = np.argsort(-row, kind="stable")[:k]
        if weights == "sparsemax":
            weight = sparsemax_by_bisection(row)
        else:
            weight = np.zeros_like(row)
            if weights == "softmax":
                weight[nearest] = np.exp(row[nearest] / temperature)
            else:
                weight[nearest] = np.maximum(row[nearest], 0)
            weight /= weight.sum()
        rows.append(weight @ source.astype(np.float64))
    return np.array(rows)


def relative_error(made, expected):
    return np.linalg.norm(made - expected, axis=1) / np.linalg.norm(expected, axis=1)
