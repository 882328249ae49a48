"""What a GPU is worth: each method on the CPU and there, on the same rows, and how far both differ.

    python bench/speed/gpu.py --device cuda

Rows are structured as trained embeddings are (embeddings.py), and in memory. A round prepares a
method and makes all wanted rows of one tensor. On the GPU a single row comes before, and is left
out: it loads libraries. Seconds are medians; the difference is the largest of a row, by its length.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from embeddings import LATENTS, table

from clpstream.device import find, on_device
from clpstream.memory import limited_to
from clpstream.transfer import METHODS

NAMES = ("clp", "ridge", "procrustes", "align", "knn", "omp")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--anchors", type=int, default=18_700)
    parser.add_argument("--wanted", type=int, default=31_000)
    parser.add_argument("--helper-width", type=int, default=1600)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--memory", type=int, default=2048, help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES)
    given = parser.parse_args()
    concepts = np.arange(given.anchors + given.wanted)
    latents = min(LATENTS, given.helper_width, given.width)
    helper = table(concepts, given.helper_width, latents, seed=0)
    x, wanted = helper[: given.anchors], helper[given.anchors :]
    y = table(concepts[: given.anchors], given.width, latents, seed=1)
    print(f"| method | cpu s | {given.device} s | times faster | difference |")
    print("|---|---|---|---|---|")
    for name in given.methods:
        with limited_to(given.memory << 20):
            slow, expected = timed(name, "cpu", x, wanted, y, given.rounds)
            timed(name, given.device, x, wanted[:1], y, 1)
            fast, made = timed(name, given.device, x, wanted, y, given.rounds)
        lengths = np.linalg.norm(expected, axis=1).clip(1e-30)
        difference = (np.linalg.norm(made - expected, axis=1) / lengths).max()
        line = f"| {name} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {difference:.1e} |"
        print(line, flush=True)


def timed(
    name: str, device: str, x: np.ndarray, wanted: np.ndarray, y: np.ndarray, rounds: int
) -> tuple[float, np.ndarray]:
    seconds = []
    with on_device(find(device)):
        for _ in range(rounds):
            begin = time.perf_counter()
            made = METHODS[name]().prepare(x, wanted).rows(y, y)
            rows = np.concatenate(
                [made[start : start + 2048] for start in range(0, len(wanted), 2048)]
            )
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), rows


if __name__ == "__main__":
    main()
