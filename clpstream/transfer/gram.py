"""Products of all pairs of anchors, in the memory that is left for them."""

from __future__ import annotations

import numpy as np

from clpstream.memory import block_bytes, max_memory
from clpstream.transfer.rows import Floats, Rows

_PANEL = 512
"""Rows of the matrix that are kept as one array."""
_TILE = 32
"""Columns that lie together: a walk down a column then stays within few pages of memory."""
_SCALE = 32767
GRAM_ERROR = 0.5 / _SCALE
"""How far an entry may be from the product, but for float32's rounding."""


def gram_bytes(anchors: int, *, whole: bool = False) -> int:
    """Of a Gram matrix: both its triangles, or (about) one."""
    return 2 * anchors * (anchors + _TILE) if whole else anchors * (anchors + _PANEL + 2 * _TILE)


def gram_limit() -> int:
    """A Gram matrix, with the anchors' unit rows if there is room for both, takes no more."""
    return max_memory() - 3 * block_bytes()


class Gram:
    """The products of unit rows (n, d) with one another, (n, n), as whole numbers of 16 bits.

    Of a product and its mirror image one is kept, unless there is room for both: a row then costs a
    copy, in place of a walk through all panels below its own.
    """

    def __init__(self, units: Rows, *, whole: bool) -> None:
        count, width = units.shape
        self._whole = whole
        self._panels = []
        for start in range(0, count, _PANEL):
            stop = min(start + _PANEL, count)
            tiles = -(-(count if whole else stop) // _TILE)
            self._panels.append(np.empty((tiles, stop - start, _TILE), np.int16))
        self._row = np.empty(_TILE * -(-count // _TILE), np.float32)
        step = _PANEL * max(1, block_bytes() // (4 * _PANEL * max(1, width)))
        for start in range(0, count, step):
            rows = units[start : min(start + step, count)]
            for other in range(0, count if whole else start + len(rows), step):
                others = units[other : min(other + step, count)]
                others = np.pad(others, ((0, -len(others) % _TILE), (0, 0)))
                self._fill(start, rows, other // _TILE, others)

    def _fill(self, start: int, rows: Floats, tile: int, others: Floats) -> None:
        """Products of rows from `start` with whole tiles of others, up to the panels' widths."""
        for first in range(0, len(rows), _PANEL):
            tiles = self._panels[(start + first) // _PANEL][tile : tile + len(others) // _TILE]
            products = rows[first : first + _PANEL] @ others[: len(tiles) * _TILE].T
            products *= _SCALE
            np.rint(products, out=products)
            tiles[:] = products.reshape(len(products), -1, _TILE).swapaxes(0, 1)

    def row(self, anchor: int, out: Floats) -> None:
        """The products of one anchor with all: out (n,)."""
        place, line = divmod(anchor, _PANEL)
        own = self._panels[place][:, line]
        self._row[: own.size].reshape(own.shape)[:] = own
        if not self._whole:
            tile, column = divmod(anchor, _TILE)
            for below, panel in enumerate(self._panels[place + 1 :], place + 1):
                self._row[below * _PANEL :][: panel.shape[1]] = panel[tile, :, column]
        np.multiply(self._row[: len(out)], np.float32(1 / _SCALE), out=out)
