"""How long `omp` searches for its atoms, next to the plain algorithm on the same rows.

Plain is orthogonal matching pursuit in batches as mergekit-tokensurgeon does it: each step takes
one product of what is left of all rows with all anchors, and solves least squares again for all
that were chosen. Both run in this process, in turns; for figures of one core, set
OPENBLAS_NUM_THREADS=1. Times are CPU time of all threads, and the median of the rounds.

    python bench/speed/omp.py --anchors 18700 --width 1600 --memory 512
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from clpstream.memory import limited_to
from clpstream.transfer import NO_ANCHOR
from clpstream.transfer.pursuit import Room, pursue
from clpstream.transfer.rows import Unit


def made(data: str, anchors: int, tokens: int, width: int) -> tuple[Any, Any]:
    """Unit rows: random ones, with a spectrum that decays, or with that in 600 clusters."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((anchors + tokens, width), np.float32)
    if data != "random":
        rows *= np.arange(1, width + 1, dtype=np.float32) ** np.float32(-0.5)
    if data == "clusters":
        rows = 0.7 * rows + rows[generator.integers(0, 600, len(rows))]
    rows -= rows[:anchors].mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[:anchors], rows[anchors:]


def plain(anchors: Any, wanted: Any, atoms: int, batch: int = 256) -> Any:
    """The atoms (n, k) by numpy, in float32; least squares by the normal equations."""
    ids = np.zeros((len(wanted), atoms), np.int64)
    for start in range(0, len(wanted), batch):
        goal = wanted[start : start + batch]
        found, left = ids[start : start + batch], goal
        for step in range(atoms):
            found[:, step] = np.abs(left @ anchors.T).argmax(axis=1)
            chosen = anchors[found[:, : step + 1]]
            gram = (chosen @ chosen.swapaxes(1, 2)).astype(np.float64)
            c = np.linalg.solve(gram, (chosen @ goal[:, :, None]).astype(np.float64))
            left = goal - (c.swapaxes(1, 2).astype(np.float32) @ chosen)[:, 0]
    return ids


def plain_torch(anchors: Any, wanted: Any, atoms: int, batch: int = 256) -> Any:
    """The same by torch, with its own least squares."""
    import torch

    rows, ids = torch.from_numpy(anchors), []
    for goal in torch.from_numpy(wanted).split(batch):
        found = torch.zeros(len(goal), 0, dtype=torch.int64)
        left = goal
        for _ in range(atoms):
            best = (left @ rows.T).abs().argmax(dim=1)
            found = torch.cat([found, best[:, None]], dim=1)
            chosen = rows[found].swapaxes(1, 2)
            c = torch.linalg.lstsq(chosen, goal[:, :, None]).solution
            left = goal - (chosen @ c)[:, :, 0]
        ids.append(found)
    return torch.cat(ids).numpy()


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="clusters", choices=("random", "spectrum", "clusters"))
    parser.add_argument("--anchors", type=int, default=18_700)
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--atoms", type=int, default=64)
    parser.add_argument("--memory", type=int, default=512, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    anchors, wanted = made(given.data, given.anchors, given.tokens, given.width)
    exact, own = Unit(anchors, None), np.full(len(wanted), NO_ANCHOR)
    ways: dict[str, Callable[[], Any]] = {
        "plain numpy": lambda: plain(anchors, wanted, given.atoms)
    }
    try:
        import torch

        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        ways["plain torch"] = lambda: plain_torch(anchors, wanted, given.atoms)
    except ImportError:
        pass
    with limited_to(given.memory << 20):
        room = Room.of(given.anchors, given.width, 1 << 40)
        once, kept = timed(lambda: room.kept(exact, given.atoms))
        ways["clpstream"] = lambda: pursue(wanted, own, kept, given.atoms)[0]
        taken = room.bytes(given.anchors, given.width) / 2**20
        print(f"{given.data}, {anchors.shape} anchors, {given.memory} MiB: {room}, {taken:.0f} MiB")
        print(f"once, for all tokens: {once:.1f} s")
        times: dict[str, list[float]] = {way: [] for way in ways}
        found = {}
        for _ in range(given.rounds):
            for way, function in ways.items():
                seconds, found[way] = timed(function)
                times[way].append(1000 * seconds / len(wanted))
    ours = statistics.median(times["clpstream"])
    for way, each in times.items():
        same = (found[way] == found["clpstream"]).all(axis=1).sum()
        median = statistics.median(each)
        print(
            f"{way:12} {median:7.2f} ms a token ({min(each):.2f} to {max(each):.2f}), "
            f"{median / ours:5.1f} times clpstream's; same atoms in {same} of {len(wanted)} rows"
        )


if __name__ == "__main__":
    main()
