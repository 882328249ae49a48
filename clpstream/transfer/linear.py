"""What the linear maps from the helper's space to the source's are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.device import device
from clpstream.errors import TransferError
from clpstream.memory import block_bytes, lean
from clpstream.transfer import jacobi
from clpstream.transfer.rows import Doubles, Floats, Rows, blocks, bounds, less

_RESOLUTION = 1e-6
"""Singular values below this part of the largest are rounding, and so are their vectors."""
ROUGH_DIRECTIONS = 512
"""Directions of a rough rotation, and those of the largest that is made exactly all the same."""
_INVERTED_WHOLE = 256
"""Rows: halves of fewer are not made, since LAPACK's seven times their memory is little."""
_SAMPLE = 256
"""Rows, evenly spaced, whose mean and spread stand in for those of all."""

Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Frame:
    """Where rows lie, roughly: a center (d,) in float32, and a power of two for their spread.

    Rows less the center are small numbers about zero, so that one pass can sum their products, to
    be freed of the means afterwards (shifted data: Chan, Golub & LeVeque 1983).
    """

    center: Floats
    scale: float

    @classmethod
    def of(cls, rows: Rows) -> Frame:
        """That of some rows: the same, whatever the blocks."""
        sample = rows[np.unique(np.linspace(0, rows.shape[0] - 1, _SAMPLE).astype(np.int64))]
        center = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = float(np.sqrt(np.square(sample - center.astype(np.float64)).mean()))
        known = np.isfinite(spread) and spread > 0
        return cls(center, 2.0 ** int(np.clip(np.log2(spread), -100, 100)) if known else 1.0)


class Framed:
    """Rows in a frame: float32."""

    def __init__(self, rows: Rows, frame: Frame) -> None:
        self._rows = rows
        self._center = frame.center
        self._inverse = np.float32(1 / frame.scale)
        self.shape = rows.shape

    def __getitem__(self, index: Any) -> Floats:
        rows = (self._rows[index] - self._center).astype(np.float32, copy=False)
        rows *= self._inverse
        return rows


@dataclass(frozen=True)
class Frames:
    """The frames of a helper's table and of a tensor of the source."""

    x: Frame
    y: Frame


@dataclass(frozen=True)
class Pairs:
    """What is known of `count` pairs of rows, x_i in the helper and y_i in a tensor of the source.

    All in the frames: the means x (d_helper,) and y (d_source,). products: XᵀY of the rows less
    their means, (d_helper, d_source). x_squares, y_squares: sums of the squares of what the means
    leave.
    """

    frames: Frames
    count: int
    x: Doubles
    y: Doubles
    products: Matrix
    x_squares: float
    y_squares: float

    @property
    def x_mean(self) -> Doubles:
        """The mean of the helper's rows themselves, (d_helper,)."""
        mean: Doubles = self.frames.x.center + self.frames.x.scale * self.x
        return mean

    @property
    def y_mean(self) -> Doubles:
        """The mean of the source's rows themselves, (d_source,)."""
        mean: Doubles = self.frames.y.center + self.frames.y.scale * self.y
        return mean

    def __add__(self, more: Pairs) -> Pairs:
        """Of these pairs and others, in the same frames."""
        return self._with(more, 1)

    def __sub__(self, some: Pairs) -> Pairs:
        """Of these pairs but some of them."""
        return self._with(some, -1)

    def _with(self, other: Pairs, sign: int) -> Pairs:
        """By the formulas of Chan, Golub & LeVeque (1983) for sums of squares about the mean."""
        count = self.count + sign * other.count
        if not other.count or not self.count:
            return self if self.count else other
        x, y = other.x - self.x, other.y - self.y
        part, weight = sign * other.count / count, self.count * other.count / count
        products = (np.add if sign > 0 else np.subtract)(self.products, other.products)
        _add_outer(products, sign * weight * x, y)
        return Pairs(
            self.frames,
            count,
            self.x + part * x,
            self.y + part * y,
            products,
            max(0.0, self.x_squares + sign * (other.x_squares + weight * float(x @ x))),
            max(0.0, self.y_squares + sign * (other.y_squares + weight * float(y @ y))),
        )


def pairs_of(
    x: Rows, y: Rows, frames: Frames | None = None, dtype: npt.DTypeLike = np.float32
) -> Pairs:
    """Read paired rows, (n, d_helper) and (n, d_source), once: products of blocks in float32, sums
    in float64.

    frames: of these rows, or of more of them. dtype: that the products are kept in. Raises
    TransferError for NaN and Inf.
    """
    frames = frames or Frames(Frame.of(x), Frame.of(y))
    x, y = Framed(x, frames.x), Framed(y, frames.y)
    products = device().arrays.sum((x.shape[1], y.shape[1]))
    x_mean, y_mean, x_squares, y_squares = np.zeros(x.shape[1]), np.zeros(y.shape[1]), 0.0, 0.0
    count = x.shape[0]
    for block in blocks(x if x.shape[1] >= y.shape[1] else y):
        ours, theirs = x[block], y[block]
        products.add(ours, theirs)
        x_mean += ours.sum(axis=0, dtype=np.float64) / count
        y_mean += theirs.sum(axis=0, dtype=np.float64) / count
        x_squares += float(_squares(ours).sum(dtype=np.float64))
        y_squares += float(_squares(theirs).sum(dtype=np.float64))
    for mean, model in ((x_mean, "helper"), (y_mean, "source")):
        if not np.isfinite(mean).all():
            raise TransferError(
                f"an anchor's row in the {model} has NaN, Inf or a number that is too large to be "
                "added up; repair the rows"
            )
    total = products.total()
    _add_outer(total, -count * x_mean, y_mean)
    return Pairs(
        frames,
        count,
        x_mean,
        y_mean,
        total.astype(dtype, copy=False),
        max(0.0, x_squares - count * float(x_mean @ x_mean)),
        max(0.0, y_squares - count * float(y_mean @ y_mean)),
    )


def gram(framed: Rows) -> tuple[Doubles, Doubles]:
    """XᵀX (d, d) of rows in a frame, and their mean (d,): all in float64."""
    total = device().arrays.sum((framed.shape[1], framed.shape[1]))
    mean = np.zeros(framed.shape[1])
    for block in blocks(framed):
        rows = exactly(framed[block])
        total.add(rows, rows)
        mean += rows.sum(axis=0, dtype=np.float64) / framed.shape[0]
    return total.total(), mean


def subtract_mean(squares: Matrix, mean: Doubles, count: int) -> None:
    """From XᵀX of `count` rows to that of the rows less their mean, in place."""
    _add_outer(squares, -count * mean, mean)


@dataclass(frozen=True)
class LinearMap:
    """f(x) = y_mean + (x - x_mean) slopes, with slopes (d_helper, d_source) in float32."""

    x_mean: Doubles
    y_mean: Doubles
    slopes: Floats

    def __call__(self, rows: Floats) -> Floats:
        """(n, d_helper) -> (n, d_source)."""
        mapped = self.turned(rows)
        mapped += self.y_mean.astype(np.float32)
        return mapped

    def turned(self, rows: Floats) -> Floats:
        """The same, less y_mean."""
        arrays = device().arrays
        turned: Floats = arrays.product(less(rows, self.x_mean), arrays.held(self.slopes))
        return turned


@dataclass(frozen=True)
class Factors:
    """XᵀY = U diag(values) Vᵀ but for rounding: left U (d_helper, r), right V (d_source, r)."""

    left: Floats
    values: Doubles
    right: Floats


def factors(products: Floats) -> Factors:
    """The singular value decomposition, from the eigenvectors on the narrower side.

    Values are exact to `_RESOLUTION` of the largest, below which they are left out.
    """
    wide = products.shape[0] <= products.shape[1]
    across = products if wide else products.T
    if lean():
        turn, others, values = jacobi.orthogonal(across, _RESOLUTION)
        count = int((values > _RESOLUTION * values[0]).sum())
        narrow, values, others = turn[:count].T, values[:count], others[:count].T
        others /= values.astype(np.float32)
    else:
        values, vectors = _singular(across)
        others = np.empty((across.shape[1], len(values)), np.float32)
        arrays = device().arrays
        there = arrays.sent(vectors)
        for columns in column_blocks(across):
            others[columns] = arrays.product(exactly(across[:, columns].T), there) / values
        narrow = vectors.astype(np.float32)
    return Factors(narrow, values, others) if wide else Factors(others, values, narrow)


def polar(products: Floats) -> Floats:
    """U Vᵀ, (d_helper, d_source), of the factors XᵀY = U diag(values) Vᵀ (see `factors`).

    It is (XᵀY YᵀX)^(-1/2) XᵀY = U diag(1 / values) Uᵀ XᵀY where the helper is the narrower side:
    V is not needed. An iteration (Newton's, Halley's) would take as long as U: XᵀY's condition is
    10⁶ and more.
    """
    wide = products.shape[0] <= products.shape[1]
    across = products if wide else products.T
    if lean():
        turn, found, values = jacobi.orthogonal(across, _RESOLUTION)
        kept = values > _RESOLUTION * values[0]
        inverse = np.divide(1, values, out=np.zeros(len(values)), where=kept)
        for columns in column_blocks(found):
            unit = found[:, columns] * inverse[:, None].astype(np.float32)
            found[:, columns] = turn.T @ unit
    else:
        values, vectors = _singular(across)
        vectors /= np.sqrt(values)
        arrays = device().arrays
        vectors = arrays.sent(vectors)
        root = vectors @ vectors.T
        del vectors
        found = np.empty(across.shape, np.float32)
        for columns in column_blocks(across):
            found[:, columns] = arrays.product(root, exactly(across[:, columns]))
    return found if wide else found.T


def rough_polar(products: Floats) -> Floats:
    """U Vᵀ, (d_helper, d_source), of about the 512 directions of which XᵀY says most: those of all,
    where there are no more.

    It takes a tenth of the time of `polar`. By randomised subspace iteration (Halko, Martinsson &
    Tropp 2011, algorithm 4.4, one step): orthonormal rows B, which span nearly all that the columns
    of XᵀY do; then U Vᵀ = Bᵀ polar(B XᵀY).
    """
    if min(products.shape) <= ROUGH_DIRECTIONS:
        return polar(products)
    arrays = device().arrays
    generator = np.random.default_rng(0)
    start = generator.standard_normal((ROUGH_DIRECTIONS, products.shape[1]), np.float32)
    there = arrays.sent(products)
    basis = polar(arrays.product(start, there.T))
    basis = polar(arrays.product(arrays.product(basis, there), there.T))
    return arrays.product(basis.T, polar(arrays.product(basis, there)))


def eigenvectors(squares: Doubles) -> tuple[Doubles, Matrix]:
    """Eigenvalues (n,) and eigenvectors (n, n) of a symmetric matrix with no negative ones."""
    if not lean():
        return device().arrays.eigh(squares)
    turn, _, values = jacobi.orthogonal(squares.astype(np.float32), _RESOLUTION)
    return values, turn.T


def inverse(matrix: Matrix) -> Matrix:
    """That of a positive definite matrix (n, n): of float64, or of float32 in the matrix's place.

    There by halves (Strassen 1969): with A = (a b; bᵀ c), s the inverse of c - bᵀ a⁻¹ b and
    w = a⁻¹ b, it is (a⁻¹ + w s wᵀ, -w s; -s wᵀ, s).
    """
    if matrix.dtype == np.float64:
        return device().arrays.inverse(matrix)
    half = len(matrix) // 2
    if half < _INVERTED_WHOLE:
        matrix[...] = np.linalg.inv(matrix)
        return matrix
    first, last, beside = matrix[:half, :half], matrix[half:, half:], matrix[:half, half:]
    inverse(first)
    across = first @ beside
    last -= beside.T @ across
    inverse(last)
    np.matmul(across, -last, out=beside)
    first -= beside @ across.T
    matrix[half:, :half] = beside.T
    return matrix


def polar_bytes(d_helper: int, d_source: int) -> int:
    """About how much memory `polar` and `factors` take, their argument and result included."""
    narrow, wide = sorted((d_helper, d_source))
    if lean():
        return jacobi.bytes_needed(narrow, wide) + 4 * narrow * wide
    return eigenvectors_bytes(narrow) + 12 * narrow * wide


def eigenvectors_bytes(count: int) -> int:
    """About how much memory `eigenvectors` takes: LAPACK takes five times the matrix."""
    return 8 * count**2 + jacobi.bytes_needed(count, count) if lean() else 40 * count**2


def _singular(products: Matrix) -> tuple[Doubles, Doubles]:
    """Singular values (r,) of a matrix that is no taller than wide, and the vectors U (d, r)."""
    squares, vectors = device().arrays.eigh(_outer_squares(products))
    values = np.sqrt(np.maximum(squares[::-1], 0))
    kept = values > _RESOLUTION * values[0]
    return values[kept], vectors[:, ::-1][:, kept]


def _outer_squares(products: Matrix) -> Doubles:
    """P Pᵀ in float64."""
    squares = device().arrays.sum((len(products), len(products)))
    for columns in column_blocks(products):
        across = exactly(products[:, columns]).T
        squares.add(across, across)
    return squares.total()


def rotation(pairs: Pairs, *, rough: bool = False) -> LinearMap:
    """Orthogonal Procrustes (Schönemann 1966), with a scale that gives the turned rows Y's spread.

    Directions of which XᵀY says nothing are left out; those of which it says little too, if it may
    be `rough`: enough to tell which rows lie close to which.
    """
    slopes = (rough_polar if rough else polar)(pairs.products)
    scale = np.sqrt(pairs.y_squares / pairs.x_squares) if pairs.x_squares else 0.0
    slopes *= np.float32(scale * pairs.frames.y.scale / pairs.frames.x.scale)
    return LinearMap(pairs.x_mean, pairs.y_mean, slopes)


def cosines(fitted: LinearMap, x: Rows, y: Rows) -> Doubles:
    """Of each pair, the cosine of f(x_i) and y_i, both less y_mean: (n,); 0 where one is zero."""
    found = np.zeros(x.shape[0])
    for block in blocks(x if x.shape[1] >= y.shape[1] else y):
        turned, rows = fitted.turned(x[block]), less(y[block], fitted.y_mean)
        norms = np.sqrt(_squares(turned)) * np.sqrt(_squares(rows))
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
        self._scale = np.float32(scale)
        self.shape = rows.shape

    def __getitem__(self, index: Any) -> Floats:
        rows = less(self._rows[index], self._center)
        rows /= self._scale
        return rows


def exactly(matrix: Matrix) -> Doubles:
    """In float64, as it is multiplied with others of float64: a GPU does not convert it."""
    return matrix.astype(np.float64, copy=False)


def column_blocks(matrix: Matrix) -> Iterator[slice]:
    """Blocks of columns of some `block_bytes` of float64."""
    step = max(1, block_bytes() // (8 * max(1, len(matrix))))
    return (slice(start, start + step) for start in range(0, matrix.shape[1], step))


def _add_outer(matrix: Matrix, left: Doubles, right: Doubles) -> None:
    """Add a column times a row, in place."""
    for columns in column_blocks(matrix):
        matrix[:, columns] += np.outer(left, right[columns])


def _squares(rows: Floats) -> Floats:
    """The sum of each row's squares, (n,)."""
    squares: Floats = np.einsum("ij,ij->i", rows, rows)
    return squares
