"""How well a method makes rows that are known: those of anchors that it is not shown."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from clpstream.errors import TransferError
from clpstream.transfer.align import POOL
from clpstream.transfer.method import Method
from clpstream.transfer.rows import Doubles, Floats, Ids, Rows, Selected, Unit, blocks, mean

FEWEST = 20
"""Source rows of anchors, of which a tenth is two."""
_PART = 10
_MOST_HIDDEN = 1000
_MOST_CANDIDATES = 4000
_LEVEL = 1e-6
"""Cosines that differ by less are level: float32 sums the same row in another order."""


@dataclass(frozen=True)
class Spaces:
    """The input embeddings of both models, and what is known of their tokens.

    helper (rows, d_helper), source (rows, d_source). anchors, anchor_rows: (n,) the rows of shared
    tokens in the source and in the helper. missing: rows in the helper of tokens that the source
    lacks. words: rows in the source of its frequent words. Of both, the most frequent first.
    """

    helper: Rows
    source: Rows
    anchors: Ids
    anchor_rows: Ids
    missing: Ids
    words: Ids


@dataclass(frozen=True)
class Draw:
    """Which anchors are hidden, by their places among the anchors.

    hidden: a tenth of them, 1,000 at most, each with a source row of its own. known: those that a
    method is shown; an anchor with the source row of a hidden one is neither. others: known ones
    that are candidates besides the hidden ones, 4,000 in all at most. center: the mean of the known
    anchors' rows in the source, (d_source,).
    """

    hidden: Ids
    known: Ids
    others: Ids
    center: Doubles


@dataclass(frozen=True)
class Figures:
    """What came of one method and one draw; see `judge`. seconds: to prepare and make the rows."""

    mrr: float
    cosine: float
    norm_ratio: float
    seconds: float


def draw(spaces: Spaces, seed: int, repeat: int) -> Draw:
    """The same seed and repeat give the same draw. The anchors' source rows are read once.

    Raises TransferError if the anchors have fewer than 20 source rows.
    """
    rows, places = np.unique(spaces.anchors, return_index=True)
    if len(rows) < FEWEST:
        raise TransferError(
            f"the shared tokens have {len(rows)} rows in the source, too few to hide a tenth of "
            f"them ({FEWEST} at least); try another --match, or models that share more tokens"
        )
    order = np.random.default_rng([seed, repeat]).permutation(places)
    count = min(_MOST_HIDDEN, len(rows) // _PART)
    hidden = np.sort(order[:count])
    known = np.flatnonzero(~np.isin(spaces.anchors, spaces.anchors[hidden]))
    center = mean(Selected(spaces.source, spaces.anchors[known]))
    return Draw(hidden, known, np.sort(order[count:_MOST_CANDIDATES]), center)


def measure(method: Method, spaces: Spaces, drawn: Draw) -> Figures:
    """Have a method make the hidden anchors' rows, as those of missing tokens, and judge them.

    It is given the known anchors and, as in a conversion, the source's frequent words; but not the
    rows of hidden anchors among these, which it could tell for those of the tokens it is asked for.
    A method that learns from the wanted tokens (`learns_from_wanted`) is asked for the hidden
    anchors among as many missing tokens as it looks at: hidden ones alone, whose words are left
    out, would be paired with wrong ones.
    Raises what `Method.prepare` and `Prepared.rows` raise.
    """
    begin = time.perf_counter()
    hidden = spaces.anchor_rows[drawn.hidden]
    wanted = hidden
    if getattr(method, "learns_from_wanted", False):
        wanted = np.union1d(hidden, spaces.missing[:POOL])
    words = spaces.words[~np.isin(spaces.words, spaces.anchors[drawn.hidden])]
    prepared = method.prepare(
        Selected(spaces.helper, spaces.anchor_rows[drawn.known]), Selected(spaces.helper, wanted)
    )
    rows = prepared.rows(
        Selected(spaces.source, spaces.anchors[drawn.known]),
        Selected(spaces.source, words) if len(words) else None,
    )
    order = np.argsort(wanted, kind="stable")
    made = _rows_at(rows, order[np.searchsorted(wanted, hidden, sorter=order)])
    seconds = time.perf_counter() - begin
    candidates = spaces.anchors[np.concatenate([drawn.hidden, drawn.others])]
    found = judge(made, Selected(spaces.source, candidates), drawn.center)
    return Figures(*found, seconds)


def judge(made: Floats, candidates: Rows, center: Doubles) -> tuple[float, float, float]:
    """How close rows (n, d) come to their true ones, the first n of the candidates (m, d).

    First, the mean reciprocal rank of the true row among the candidates, by cosine of the rows less
    `center`; where several are level, the mean over their orders, so that a row that tells nothing
    gets what chance gives. Second, the mean of that cosine with the true row. Third, the median of
    |made| / |true|, of true rows that are not zero. The candidates are read by blocks; what is kept
    is (n, m) cosines.
    """
    units, theirs = Unit(made, center)[:], Unit(candidates, center)
    cosines = np.empty((len(made), candidates.shape[0]), np.float32)
    for block in blocks(candidates):
        cosines[:, block] = units @ theirs[block].T
    own = cosines.diagonal().copy()
    above = (cosines > own[:, None] + _LEVEL).sum(axis=1)
    level = (cosines >= own[:, None] - _LEVEL).sum(axis=1) - above
    reciprocals = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, cosines.shape[1] + 1))])
    ranks = (reciprocals[above + level] - reciprocals[above]) / level
    lengths = np.linalg.norm(candidates[: len(made)], axis=1)
    there = lengths > 0
    ratios = np.linalg.norm(made[there], axis=1) / lengths[there]
    return float(ranks.mean()), float(own.mean()), float(np.median(ratios)) if len(ratios) else 0.0


def judging_bytes(d_source: int) -> int:
    """About how much memory judging takes, besides what the method does."""
    return 3 * 4 * _MOST_HIDDEN * _MOST_CANDIDATES + 6 * 4 * _MOST_HIDDEN * d_source


def chance(candidates: int) -> float:
    """The mean reciprocal rank of rows that tell nothing."""
    return float((1 / np.arange(1, candidates + 1)).mean())


def _rows_at(rows: Rows, places: Ids) -> Floats:
    """Some of the rows that a method makes, which it does for slices."""
    found = np.empty((len(places), rows.shape[1]), np.float32)
    for block in blocks(rows):
        here = np.flatnonzero((places >= block.start) & (places < block.stop))
        if len(here):
            found[here] = rows[block][places[here] - block.start]
    return found
