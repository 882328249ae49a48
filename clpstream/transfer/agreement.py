"""Whether shared tokens mean the same in both models: which rows to copy, and which to make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clpstream.device import device
from clpstream.memory import block_bytes
from clpstream.transfer.linear import Factors, Scaled, factors, pairs_of, polar_bytes
from clpstream.transfer.rows import Doubles, Floats, Rows

_CHANCE = 0.9
"""Tokens that agree better than this part of random pairs agree better than chance; worse, those
that agree less than this part do."""
_BEST = 0.99
"""The quantile of the agreement that counts as the best one: single tokens may be odd."""
_OF_BEST = 0.9
_TOGETHER = 256
"""Pairs that are judged at once, whatever memory there is: it decides which others chance is."""
_NOTHING = -40.0
"""An exponent that leaves nothing in float32, and does not underflow."""


@dataclass(frozen=True)
class Agreement:
    """How well each anchor's two rows agree, and two rows of different anchors: cosines, (n,).

    of_pairs: between an anchor's row in the source and the one that the other anchors' rotation
    gives it. of_others: the same with the row of another anchor, which tells what chance gives.
    """

    of_pairs: Doubles
    of_others: Doubles

    @classmethod
    def mean(cls, found: Iterable[Agreement]) -> Agreement:
        """That of several tables: the mean cosine of each anchor."""
        all_pairs, all_others = zip(*((one.of_pairs, one.of_others) for one in found), strict=True)
        return cls(np.mean(all_pairs, axis=0), np.mean(all_others, axis=0))

    def threshold(self, unsure: npt.NDArray[np.bool_], *, versed: bool = False) -> float:
        """From which cosine on an unsure anchor (n,) is taken for the same token in both models.

        versed: the source was trained for so long that it knows words of many languages; what a
        small helper says of them is worth less than its rows. Of such a source all are taken for
        the same, but for those that agree worse than chance. Otherwise a token must agree nine
        tenths as well as the best do, since many that don't mean the same stand in similar places
        all the same; less is asked the more of them agree better than chance, up to half of them.
        """
        ours, others = self.of_pairs[unsure], self.of_others[unsure]
        if not len(ours):
            return -1.0
        if versed:
            return float(np.quantile(others, 1 - _CHANCE))
        least = float(np.quantile(others, _CHANCE))
        most = max(least, _OF_BEST * float(np.quantile(ours, _BEST)))
        by_chance = float((ours <= least).mean())
        return least + min(1.0, 2 * by_chance) * (most - least)


def agreement_of(x: Rows, y: Rows) -> Agreement:
    """Of the anchors' rows in the helper, (n, d_helper), and in a tensor of the source.

    Each anchor is judged by the orthogonal Procrustes rotation of the others, to first order in
    what it adds to XᵀY. With XᵀY = U S Vᵀ, a = Uᵀx and b = Vᵀy, leaving a pair out changes the
    rotated row in the basis V by -(b ∘ C(a∘a) - a ∘ C(a∘b)), where C_ij = 1 / (s_i + s_j); and by
    what lies outside of the narrower side's space: -(Σ a_i² / s_i) y⊥ where the source is wider,
    -|x⊥|² b / s where the helper is. (The differential of the polar factor, as in Kenney & Laub
    1991.) All anchors so cost two products with C, instead of a decomposition each.
    """
    pairs = pairs_of(x, y)
    found = factors(pairs.products)
    ours = Scaled(x, pairs.x_mean, pairs.frames.x.scale)
    theirs = Scaled(y, pairs.y_mean, pairs.frames.y.scale)
    count = x.shape[0]
    of_pairs, of_others = np.zeros(count), np.zeros(count)
    if len(found.values):
        for start in range(0, count, _TOGETHER):
            block = slice(start, start + _TOGETHER)
            of_pairs[block], of_others[block] = _left_out(found, ours[block], theirs[block])
    return Agreement(of_pairs, of_others)


def agreement_bytes(d_helper: int, d_source: int) -> int:
    """About how much memory `agreement_of` takes."""
    return max(polar_bytes(d_helper, d_source), 12 * d_helper * d_source) + 3 * block_bytes()


def _inverse_sums(values: Doubles) -> tuple[Floats, Floats]:
    """Decays D (r, 70) and weights w (70,) with 1 / (s_i + s_j) = sum_k D_ik w_k D_jk.

    1 / s is the integral of exp(u - s exp(u)) over u. For s from 2e-6 to 2, the trapezoid rule with
    steps of a half is exact to 1e-7 of it: so few exponentials stand for the whole matrix (as in
    Braess & Hackbusch 2005). The values are at most 1, and above the resolution of `factors`.
    """
    nodes = np.exp(np.arange(-18, 17, 0.5))
    decays = np.exp(np.maximum(-values[:, None] * nodes, _NOTHING))
    return decays.astype(np.float32), (0.5 * nodes).astype(np.float32)


def _left_out(found: Factors, x: Floats, y: Floats) -> tuple[Doubles, Doubles]:
    """Of a block of pairs: cosines with the own row, and with that of half a block before."""
    values = found.values / found.values[0]  # the scale of a pair follows, below
    unit = found.values[0]
    arrays = device().arrays
    a = arrays.product(x, arrays.held(found.left))
    b = arrays.product(y, arrays.held(found.right))
    decays, weights = _inverse_sums(values)
    change = b * (((a * a) @ decays * weights) @ decays.T)
    change -= a * (((a * b) @ decays * weights) @ decays.T)
    change /= np.float32(unit)
    outside = np.zeros(len(a), np.float32)
    if found.left.shape[0] <= found.right.shape[0]:
        outside = (np.square(a) @ (1 / values).astype(np.float32)) / np.float32(unit)
    else:
        beyond = _dots(x, x) - _dots(a, a)
        change += (beyond / np.float32(unit))[:, None] * (b / values.astype(np.float32))
    made = np.subtract(a, change, out=change)
    own_outside = np.maximum(_dots(y, y) - _dots(b, b), 0)
    length = np.sqrt(_dots(made, made) + np.square(outside) * own_outside)

    def cosines(step: int) -> Doubles:
        beside = _dots(y, y, step) - _dots(b, b, step)
        dots = _dots(made, b, step) - outside * beside
        norms = length * np.roll(np.sqrt(_dots(y, y)), step)
        cosine: Doubles = np.divide(dots, norms, out=np.zeros(len(a)), where=norms > 0)
        return cosine

    return cosines(0), cosines(len(a) // 2)


def _dots(left: Floats, right: Floats, step: int = 0) -> Floats:
    """Products (n,) of each row (n, d) with that of `right` which stands `step` before it, the last
    ones before the first."""
    dots = np.empty(len(left), np.float32)
    np.einsum("ij,ij->i", left[step:], right[: len(left) - step], out=dots[step:])
    np.einsum("ij,ij->i", left[:step], right[len(left) - step :], out=dots[:step])
    return dots
