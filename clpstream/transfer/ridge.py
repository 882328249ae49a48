"""`ridge`: a linear map from the helper's space to the source's, by ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from clpstream.device import device
from clpstream.errors import TransferError
from clpstream.memory import block_bytes, lean
from clpstream.transfer.linear import (
    Frame,
    Framed,
    Frames,
    Scaled,
    column_blocks,
    eigenvectors,
    eigenvectors_bytes,
    gram,
    pairs_of,
    subtract_mean,
)
from clpstream.transfer.method import NO_ANCHOR, directionless, own_anchors
from clpstream.transfer.rows import (
    Doubles,
    Floats,
    Ids,
    Rows,
    Unit,
    blocks,
    bounds,
    check_count,
    check_shapes,
)
from clpstream.transfer.search import kept_bytes, search

PENALTIES = 10 ** np.arange(-3, 2.75, 0.5)
"""What is tried where no penalty is given."""
_MIN_LEFT = 1e-9
"""Of a row that the others leave undetermined: smallest part that is not rounding."""


@dataclass(frozen=True)
class Ridge:
    """E_m = mean(E) + (H_m - mean(H)) W, with W = (XᵀX + penalty t I)⁻¹ XᵀY.

    Ridge regression (Hoerl & Kennard 1970): X and Y are the anchors' rows in the helper and in a
    tensor of the source, less their means; t is the mean of XᵀX's diagonal, so that a penalty means
    the same for all models.

    penalty:
        None chooses it for each tensor from 10^-3 to 10^2.5, by generalised cross-validation
        (Golub, Heath & Wahba 1979), which takes no more than XᵀX's eigenvectors.

    The row of a shared token is that of the regression without its own anchor, exactly, by the
    formula for leaving one out; but for t and the chosen penalty, which are those of all anchors. A
    token whose helper row has no direction (it is zero, or the mean itself) gets the mean of all
    anchors. Raises TransferError for a penalty that is not above 0 and finite.
    """

    penalty: float | None = None
    name: ClassVar[str] = "ridge"
    reads_helper: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.penalty is not None and not 0 < self.penalty < float("inf"):
            raise TransferError(f"penalty is {self.penalty}; it must be above 0 and finite")

    def prepare(self, anchors: Rows, wanted: Rows, own: Ids | None = None) -> PreparedRidge:
        """See `Method.prepare`."""
        check_shapes(anchors, wanted)
        own = own_anchors(own, wanted.shape[0], anchors.shape[0])
        return PreparedRidge(anchors, wanted, own, self.penalty)

    def fewest(self, d_helper: int, d_source: int) -> int:
        """See `Method.fewest`. With fewer, the penalty alone determines some directions."""
        return d_helper

    def options(self) -> dict[str, Any]:
        """See `Method.options`."""
        return asdict(self)

    def working_bytes(self, anchors: int, missing: int, d_helper: int, d_source: int) -> int:
        """See `Method.working_bytes`."""
        vectors, matrix = (12 if lean() else 16) * d_helper**2, d_helper * d_source
        most = max(eigenvectors_bytes(d_helper), vectors + 12 * matrix)
        return most + 16 * missing + 6 * block_bytes()


class PreparedRidge:
    """See `Prepared`. Keeps the eigenvectors of XᵀX: (d_helper, d_helper). X is in a frame."""

    def __init__(self, anchors: Rows, wanted: Rows, own: Ids, penalty: float | None) -> None:
        self._frame = Frame.of(anchors)
        # in float64: with few anchors, small eigenvalues count
        squares, mean = gram(Framed(anchors, self._frame))
        if not np.isfinite(mean).all():
            directionless(Unit(anchors, None))  # raises, and names the row
        subtract_mean(squares, mean, anchors.shape[0])
        center = self._frame.center + self._frame.scale * mean
        self._rows = anchors
        self._anchors = Scaled(anchors, center, self._frame.scale)
        self._wanted = Scaled(wanted, center, self._frame.scale)
        self._own = own
        self._penalty = penalty
        self._lost = directionless(Unit(wanted, center))
        self.guarded = {"no direction in the helper": np.flatnonzero(self._lost)}
        self._unit = max(0.0, float(squares.trace())) / len(squares) or 1.0
        values, self._vectors = eigenvectors(squares)
        self._values = np.maximum(values, 0)

    def rows(self, anchors: Rows, words: Rows | None = None) -> Rows:
        """See `Prepared.rows`. Reads all anchors once."""
        check_count(anchors, self._anchors.shape[0])
        frames = Frames(self._frame, Frame.of(anchors))
        pairs = pairs_of(self._rows, anchors, frames, np.float64)
        products, powers = pairs.products, np.zeros(len(pairs.products))
        arrays = device().arrays
        vectors = arrays.held(self._vectors)
        for columns in column_blocks(products):
            turned = arrays.product(vectors.T, products[:, columns])
            powers += np.square(turned).sum(axis=1)  # of each eigenvector in Y
            products[:, columns] = turned
        penalty = self._penalty or self._best_penalty(powers, pairs.y_squares)
        weights = arrays.sent(self._vectors * (self._shrinkage(penalty) * pairs.frames.y.scale))
        slopes = np.empty(products.shape, np.float32)
        for columns in column_blocks(products):
            slopes[:, columns] = arrays.product(weights, products[:, columns])
        return _Mapped(self, penalty, slopes, pairs.y_mean, anchors)

    def nearest(self, rows: Sequence[int], top: int) -> list[tuple[Ids, Doubles]]:
        """See `Prepared.nearest`. Where the penalty is chosen for each tensor, 1 stands for it."""
        places, found = np.array(rows, np.int64), []
        count, width = self._anchors.shape
        step = max(1, kept_bytes() // (4 * width))
        for start in range(0, len(places), step):
            some = places[start : start + step]
            loads, extra = self._loads(some)
            pieces = blocks(self._anchors)
            scores, ids = search(loads, self._own[some], self._anchors, min(top, count), pieces)
            weights = scores + (1 + extra[:, None]) / count
            there = weights > -np.inf
            found += [(i[t], w[t]) for i, w, t in zip(ids, weights, there, strict=True)]
        return found

    def _loads(self, places: Ids) -> tuple[Floats, Doubles]:
        """For some wanted rows what they multiply each anchor's row with to get its weight, but for
        what all anchors have: (n, d_helper); and the number of `inputs`."""
        penalty = self._penalty or 1.0
        loads, extra = np.empty((len(places), self._anchors.shape[1]), np.float32), []
        for part in blocks(loads):
            inputs, more = self.inputs(places[part], penalty)
            loads[part] = (inputs @ self._vectors * self._shrinkage(penalty)) @ self._vectors.T
            extra.append(more)
        return loads, np.concatenate([np.empty(0), *extra])

    def inputs(self, index: Any, penalty: float) -> tuple[Floats, Doubles]:
        """What the map makes wanted rows from, (n, d_helper), and a number for each, (n,).

        The number is 0 for a missing token. Of a shared one, the row without anchor i is
        f(x) - k (y_i - f(x_i)) / (1 - h), where f is the map that all anchors give, k and h are the
        weight of y_i in f(x) and f(x_i). So it is a map too: the input is x + c x_i, the number is
        c = k / (1 - h), and c y_i is left to subtract. Where the others say next to nothing of a
        row, c is large, and float32 keeps c times less of it.
        """
        inputs, own, lost = self._wanted[index], self._own[index], self._lost[index]
        extra = np.zeros(len(own))
        inputs[lost] = 0
        shared = np.flatnonzero(own != NO_ANCHOR)
        if not len(shared):
            return inputs, extra
        found = self._anchors[own[shared]]
        found[lost[shared]] = 0
        # in float64, since 1 - h may be small
        arrays = device().arrays
        vectors = arrays.held(self._vectors)
        turned = arrays.product(found.astype(np.float64), vectors)
        if np.array_equal(found, inputs[shared]):
            turned_inputs = turned
        else:
            turned_inputs = arrays.product(inputs[shared].astype(np.float64), vectors)
        shrunk = turned * self._shrinkage(penalty)
        even = 1 / self._anchors.shape[0]
        own_weight = even + np.einsum("ij,ij->i", turned, shrunk)
        weight = even + np.einsum("ij,ij->i", turned_inputs, shrunk)
        extra[shared] = weight / np.maximum(1 - own_weight, _MIN_LEFT)
        inputs[shared] += (extra[shared, None] * found).astype(np.float32)
        return inputs, extra

    def own(self, index: slice) -> Ids:
        """The own anchors of some wanted rows."""
        return self._own[index]

    def _shrinkage(self, penalty: float) -> Doubles:
        """The eigenvalues of (XᵀX + penalty t I)⁻¹."""
        shrunk: Doubles = 1 / (self._values + penalty * self._unit)
        return shrunk

    def _best_penalty(self, powers: Doubles, squares: float) -> float:
        """That with the least n |Y - f(X)|² / (n - trace of hat)²: generalised cross-validation."""
        count, errors = self._anchors.shape[0], []
        for penalty in PENALTIES:
            shrunk = self._shrinkage(penalty)
            left = squares - float(powers @ (2 * shrunk - self._values * np.square(shrunk)))
            free = count - 1 - float(self._values @ shrunk)
            errors.append(max(left, 0) / max(free, _MIN_LEFT) ** 2)
        return float(PENALTIES[np.argmin(errors)])


class _Mapped:
    """The wanted rows (n_wanted, d_source), made by slices."""

    def __init__(
        self,
        prepared: PreparedRidge,
        penalty: float,
        slopes: Floats,
        center: Doubles,
        anchors: Rows,
    ) -> None:
        self._prepared = prepared
        self._penalty = penalty
        self._slopes = slopes
        self._center = center
        self._anchors = anchors
        self.shape = (prepared.own(slice(None)).shape[0], anchors.shape[1])

    def __getitem__(self, index: slice) -> Floats:
        start, stop = bounds(index, self.shape[0])
        out = np.empty((stop - start, self.shape[1]), np.float32)
        step = max(1, block_bytes() // (8 * max(self._slopes.shape)))
        for first in range(start, stop, step):
            part = slice(first, min(first + step, stop))
            out[part.start - start : part.stop - start] = self._made(part)
        return out

    def _made(self, part: slice) -> Floats:
        inputs, extra = self._prepared.inputs(part, self._penalty)
        arrays = device().arrays
        rows: Floats = arrays.product(inputs, arrays.held(self._slopes))
        rows += self._center.astype(np.float32)
        own = self._prepared.own(part)
        shared = np.flatnonzero(own != NO_ANCHOR)
        if len(shared):
            rest = self._center - self._anchors[own[shared]]
            rows[shared] += (extra[shared, None] * rest).astype(np.float32)
        return rows
