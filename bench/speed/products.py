"""The least that a method can take: its products of matrices alone, by BLAS on arrays in memory.

    python bench/speed/products.py SOURCE HELPER --method align

Arrays of the shapes that the conversion of SOURCE with HELPER has, of random numbers; nothing is
read, searched for or rounded, and what is made is thrown away. Prints the seconds of the products,
decompositions included, without those of making the arrays: for all vocabulary tensors together.
What the helper alone determines is made once for all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clpstream.plan import Plan, make_plan
from clpstream.progress import Progress
from clpstream.sharing import settle
from clpstream.transfer import Align, Procrustes
from clpstream.transfer.align import POOL
from clpstream.transfer.linear import ROUGH_DIRECTIONS as ROUGH

METHODS = ("paper", "clp", "ridge", "procrustes", "align", "knn")

Floats = npt.NDArray[np.float32]


def main() -> None:
    args = parse_args()
    copied = args.method == "paper"
    plan = make_plan(
        args.source,
        args.helper,
        method="clp" if copied else args.method,
        match_by="exact" if copied else "bytes",
        shared="copy" if copied else "auto",
    )
    judged = len(plan.origins.anchors) if plan.shared == "auto" else 0
    plan = settle(plan, Progress())
    print(f"{seconds(plan, args.method, judged):.3f}")


def seconds(plan: Plan, method: str, judged: int) -> float:
    """Of all products. judged: anchors whose rows are compared, for --shared auto."""
    assert plan.embeddings is not None
    origins, ours = plan.origins, plan.embeddings.width
    tables = [made.tensor for made in plan.new.values() if made.tensor.width > 1]
    widest = max(table.width for table in tables)
    generator = np.random.default_rng(0)
    x, wanted = (
        generator.standard_normal((count, ours), np.float32)
        for count in (len(origins.anchors), len(origins.combined))
    )
    y = generator.standard_normal((len(origins.anchors), widest), np.float32)
    start = time.perf_counter()
    if judged:
        agree(x[:judged], y[:judged])
    for slopes in fitted(method, x, y, wanted, len(tables)):
        apply(wanted, slopes)
    return time.perf_counter() - start


def agree(x: Floats, y: Floats) -> None:
    """Leave-one-out agreement of all anchors."""
    turn, slopes = decomposed(x.T @ y)
    apply(x, turn if len(turn) == x.shape[1] else slopes)
    apply(y, turn if len(turn) == y.shape[1] else slopes.T)


def fitted(method: str, x: Floats, y: Floats, wanted: Floats, tables: int) -> Iterator[Floats]:
    """What the wanted rows are multiplied with, for each table."""
    if method == "knn":
        search(wanted, x)
    elif method in ("clp", "paper"):
        yield from (x.T @ y for _ in range(tables))
    elif method == "ridge":
        vectors = np.linalg.eigh(x.T @ x)[1].astype(np.float32)
        yield from (vectors @ (vectors.T @ (x.T @ y)) for _ in range(tables))
    elif method == "procrustes":
        for _ in range(tables):
            products = x.T @ y
            for _ in range(Procrustes().rounds):
                apply(x, rough(products))
            yield decomposed(products)[1]
    else:
        yield from aligned(x, y, wanted[:POOL], tables)


def aligned(x: Floats, y: Floats, pool: Floats, tables: int) -> Iterator[Floats]:
    """Half of the pool are found to be pairs, as with real models."""
    products, squares = [x.T @ y for _ in range(tables)], x.T @ x
    theirs, pairs = [y.T @ y for _ in range(tables)], slice(POOL // 2)
    for _ in range(Align().rounds):
        for one in products:
            search(pool @ rough(one), y[:POOL])
        products = [one + pool[pairs].T @ y[pairs] for one in products]
    for one, of_source in zip(products, theirs, strict=True):
        yield tempered(one, squares + pool[pairs].T @ pool[pairs], of_source)


def tempered(products: Floats, squares: Floats, of_source: Floats) -> Floats:
    """Between rotation and regression."""
    turn, regression = decomposed(products)[1], inverted(squares) @ products
    turned = turn.T @ (squares @ turn)
    rest = (regression - turn) @ inverted(of_source + turned)
    return turn + rest @ turned


def decomposed(products: Floats) -> tuple[Floats, Floats]:
    """Eigenvectors of the narrower side, and the rotation."""
    across = (products if len(products) <= products.shape[1] else products.T).astype(np.float64)
    values, vectors = np.linalg.eigh(across @ across.T)
    scaled = vectors / np.sqrt(np.sqrt(np.maximum(values, values[-1] * 1e-12)))
    root = ((scaled @ scaled.T) @ across).astype(np.float32)
    return vectors.astype(np.float32), root if root.shape == products.shape else root.T


def rough(products: Floats) -> Floats:
    """The rotation of 512 directions, where there are more."""
    if min(products.shape) <= ROUGH:
        return decomposed(products)[1]
    basis = decomposed(products[:ROUGH] @ products.T)[1]
    basis = decomposed((basis @ products) @ products.T)[1]
    return basis.T @ decomposed(basis @ products)[1]


def inverted(squares: Floats) -> Floats:
    """That of squares and a penalty."""
    penalised = squares.astype(np.float64)
    penalised[np.diag_indices_from(penalised)] += squares.trace() / len(squares)
    found: Floats = np.linalg.inv(penalised).astype(np.float32)
    return found


def search(queries: Floats, rows: Floats) -> None:
    for block in blocks(queries):
        block @ rows.T


def apply(rows: Floats, slopes: Floats) -> None:
    for block in blocks(rows):
        block @ slopes


def blocks(rows: Floats) -> Iterator[Floats]:
    return (rows[start : start + 2048] for start in range(0, len(rows), 2048))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("helper", type=Path)
    parser.add_argument("--method", choices=METHODS, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
