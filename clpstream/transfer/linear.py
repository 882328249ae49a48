"""What the linear maps from the helper's space to the source's are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clpstream.errors import TransferError
from clpstream.memory import block_bytes
from clpstream.transfer.rows import Doubles, Floats, Rows, blocks, bounds, mean

_RESOLUTION = 1e-6
"""Singular values below this part of the largest are rounding, and so are their vectors."""


@dataclass(frozen=True)
class Pairs:
    """What is known of pairs of rows, x_i in the helper and y_i in a tensor of the source.

    x_mean (d_helper,), y_mean (d_source,). products: XᵀY of the rows less their means, (d_helper,
    d_source). x_squares, y_squares: sums of the squares of what the means leave.
    """

    x_mean: Doubles
    y_mean: Doubles
    products: Doubles
    x_squares: float
    y_squares: float


def pairs_of(x: Rows, y: Rows) -> Pairs:
    """Read paired rows, (n, d_helper) and (n, d_source), twice, by blocks.

    Raises TransferError for NaN and Inf.
    """
    x_mean, y_mean = mean(x), mean(y)
    for center, model in ((x_mean, "helper"), (y_mean, "source")):
        if not np.isfinite(center).all():
            raise TransferError(f"an anchor's row in the {model} has NaN or Inf; repair the rows")
    centered = Scaled(x, x_mean, 1.0)
    products, y_squares = products_of(centered, y, y_mean)
    return Pairs(x_mean, y_mean, products, squares_of(centered), y_squares)


@dataclass(frozen=True)
class LinearMap:
    """f(x) = y_mean + (x - x_mean) slopes, with slopes (d_helper, d_source) in float32."""

    x_mean: Doubles
    y_mean: Doubles
    slopes: Floats

    def __call__(self, rows: Floats) -> Floats:
        """(n, d_helper) -> (n, d_source)."""
        mapped: Floats = self.turned(rows) + self.y_mean.astype(np.float32)
        return mapped

    def turned(self, rows: Floats) -> Floats:
        """The same, less y_mean."""
        centered = (rows - self.x_mean).astype(np.float32)  # subtracted in float64
        turned: Floats = centered @ self.slopes
        return turned


@dataclass(frozen=True)
class Factors:
    """XᵀY = U diag(values) Vᵀ but for rounding: left U (d_helper, r), right V (d_source, r)."""

    left: Doubles
    values: Doubles
    right: Doubles


def factors(products: Doubles) -> Factors:
    """The singular value decomposition, from the eigenvectors on the narrower side.

    Values are exact to `_RESOLUTION` of the largest, below which they are left out.
    """
    wide = products.shape[0] <= products.shape[1]
    squares, vectors = np.linalg.eigh(products @ products.T if wide else products.T @ products)
    values = np.sqrt(np.maximum(squares[::-1], 0))
    kept = values > _RESOLUTION * values[0]
    vectors, values = vectors[:, ::-1][:, kept], values[kept]
    others = (products.T if wide else products) @ vectors / values
    return Factors(vectors, values, others) if wide else Factors(others, values, vectors)


def rotation(pairs: Pairs) -> LinearMap:
    """Orthogonal Procrustes (Schönemann 1966), with a scale that gives the turned rows Y's spread.

    Directions of which XᵀY says nothing are left out.
    """
    found = factors(pairs.products)
    scale = np.sqrt(pairs.y_squares / pairs.x_squares) if pairs.x_squares else 0.0
    slopes = (scale * found.left @ found.right.T).astype(np.float32)
    return LinearMap(pairs.x_mean, pairs.y_mean, slopes)


def cosines(fitted: LinearMap, x: Rows, y: Rows) -> Doubles:
    """Of each pair, the cosine of f(x_i) and y_i, both less y_mean: (n,); 0 where one is zero."""
    found = np.zeros(x.shape[0])
    for block in blocks(x if x.shape[1] >= y.shape[1] else y):
        turned, rows = fitted.turned(x[block]), (y[block] - fitted.y_mean).astype(np.float32)
        norms = np.linalg.norm(turned, axis=1) * np.linalg.norm(rows, axis=1)
        dots = np.einsum("ij,ij->i", turned, rows)
        np.divide(dots, norms, out=found[block], where=norms > 0)
    return found


class MappedRows:
    """The rows (n, d_source) that a map makes of others, by slices; `lost` ones are y_mean."""

    def __init__(self, fitted: LinearMap, rows: Rows, lost: Any) -> None:
        self._fitted = fitted
        self._rows = rows
        self._lost = lost
        self.shape = (rows.shape[0], fitted.slopes.shape[1])

    def __getitem__(self, index: slice) -> Floats:
        start, stop = bounds(index, self.shape[0])
        out = np.empty((stop - start, self.shape[1]), np.float32)
        step = max(1, block_bytes() // (8 * max(self._fitted.slopes.shape)))
        for first in range(start, stop, step):
            part = slice(first, min(first + step, stop))
            out[part.start - start : part.stop - start] = self._fitted(self._rows[part])
        out[self._lost[start:stop]] = self._fitted.y_mean
        return out


class Scaled:
    """Rows less a center, divided by a scale: float32."""

    def __init__(self, rows: Rows, center: Doubles, scale: float) -> None:
        self._rows = rows
        self._center = center
        self._scale = scale
        self.shape = rows.shape

    def __getitem__(self, index: Any) -> Floats:
        rows = self._rows[index] - self._center  # in float64: little may be left of two large ones
        rows /= self._scale
        return rows.astype(np.float32)


def spread(rows: Rows, center: Doubles) -> float:
    """The root mean square of what the center leaves; 1 where that is nothing."""
    squares = 0.0
    for block in blocks(rows):
        squares += float(np.square(rows[block] - center).sum())
    return float(np.sqrt(squares / (rows.shape[0] * rows.shape[1]))) or 1.0


def products_of(units: Rows, anchors: Rows, center: Doubles) -> tuple[Doubles, float]:
    """XᵀY (d_helper, d_source), and the sum of Y's squares."""
    total, squares = np.zeros((units.shape[1], anchors.shape[1])), 0.0
    wider = units if units.shape[1] >= anchors.shape[1] else anchors
    for block in blocks(wider):
        rows = (anchors[block] - center).astype(np.float32)
        total += units[block].T @ rows
        squares += float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))
    return total, squares


def squares_of(centered: Rows) -> float:
    """The sum of all squares, in float64."""
    found = (centered[block] for block in blocks(centered))
    return float(sum(np.einsum("ij,ij->", rows, rows, dtype=np.float64) for rows in found))


def gram(centered: Rows) -> Doubles:
    """XᵀX, (d, d): products of blocks in float32, their sum in float64."""
    total = np.zeros((centered.shape[1], centered.shape[1]))
    for block in blocks(centered):
        rows = centered[block]
        total += rows.T @ rows
    return total


def column_blocks(matrix: Doubles) -> Iterator[slice]:
    """Blocks of columns of some `block_bytes` of float64."""
    step = max(1, block_bytes() // (8 * max(1, len(matrix))))
    return (slice(start, start + step) for start in range(0, matrix.shape[1], step))
