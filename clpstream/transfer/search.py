"""Nearest anchors by inner product: exact, over blocks of anchors, with a running best k."""

from __future__ import annotations

import numpy as np

from clpstream.transfer.rows import Floats, Ids, Rows, blocks

QUERY_BYTES = 32 << 20
ANCHOR_BYTES = 16 << 20


def nearest(queries: Floats, anchors: Rows, k: int) -> tuple[Floats, Ids]:
    """Scores (n, k) in falling order and anchor indices (n, k) of the k nearest anchors.

    Exact search with FAISS. Equal scores keep the order of the anchors, so that the result does
    not depend on the blocks. `k` is at most the number of anchors, which is at least 1.
    """
    import faiss  # here, since importing it takes longer than most commands run

    scores = np.empty((len(queries), 0), np.float32)
    ids = np.empty((len(queries), 0), np.int64)
    for block in blocks(anchors, ANCHOR_BYTES):
        found = anchors[block]
        new_scores, new_ids = faiss.knn(
            queries, found, min(k, len(found)), metric=faiss.METRIC_INNER_PRODUCT
        )
        scores = np.hstack([scores, new_scores])
        ids = np.hstack([ids, new_ids + block.start])
        order = np.lexsort((ids, -scores))[:, :k]
        scores = np.take_along_axis(scores, order, axis=1)
        ids = np.take_along_axis(ids, order, axis=1)
    return scores, ids
