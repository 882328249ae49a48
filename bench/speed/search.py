"""What the nearest tokens cost to find: time, memory and recall against the vocabulary's size.

    python bench/speed/search.py --output results --width 512 --rounds 1

For each size it makes anchors, and three wanted rows for five of them, structured as trained
embeddings are (embeddings.py), and lets `knn` find ten neighbours with each index, every time in a
process of its own. "auto-always" is auto without the size below which it is exact, and takes an
index that seems to save anything. Recall is that which clpstream reports: of the ten nearest, on
1,024 of the wanted rows; 1 where all are compared. Prints a table, and writes
results/search.md and, with matplotlib, results/search.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from embeddings import LATENTS, table_blocks

SIZES = (10_000, 25_000, 50_000, 100_000, 250_000)
INDEXES = ("exact", "auto", "auto-always", "IVF1024,Flat", "IVF1024,PQ64", "HNSW32")
SLOW = {"IVF1024,Flat": 50_000, "IVF1024,PQ64": 10_000, "HNSW32": 25_000}
"""Sizes above which an index is left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="anchors")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--indexes", nargs="+", default=INDEXES)
    parser.add_argument("--memory", type=int, default=512, help="MiB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(Path(given.one[0]), given.one[1], given.memory)))
        return
    given.output.mkdir(parents=True, exist_ok=True)
    runs = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.output) as directory:
            place = Path(directory)
            save(place, {"anchors": size, "wanted": size * 3 // 5}, given.width)
            for _ in range(given.rounds):
                for index in given.indexes:
                    if size <= SLOW.get(index, size):
                        runs.append({"size": size, "index": index} | alone(place, index, given))
                        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    text = table(runs, given)
    (given.output / "search.md").write_text(text, "utf-8")
    plot(runs, given.output / "search.png")
    print(text)


def save(place: Path, counts: dict[str, int], width: int) -> None:
    """Rows of one table, cut into files. Two tables of one seed would have the same noise, and row
    n of one of them row n of the other for its nearest."""
    kinds = [
        np.lib.format.open_memmap(place / f"{kind}.npy", "w+", np.float32, (count, width))
        for kind, count in counts.items()
    ]
    files = iter(kinds)
    rows, start = next(files), 0
    for block in table_blocks(np.arange(sum(counts.values())), width, min(LATENTS, width), seed=1):
        while len(block):
            if start == len(rows):
                rows, start = next(files), 0
            part = block[: len(rows) - start]
            rows[start : start + len(part)] = part
            start += len(part)
            block = block[len(part) :]
    for kind in kinds:
        kind.flush()


def alone(place: Path, index: str, given: argparse.Namespace) -> dict[str, Any]:
    """`measured` in a process of its own; what it says of an index that can't be."""
    line = [sys.executable, __file__, "--output", ".", "--memory", str(given.memory)]
    done = subprocess.run([*line, "--one", str(place), index], capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout)


def measured(place: Path, name: str, memory: int) -> dict[str, Any]:
    """CPU seconds, seconds, and bytes above what is there before the search begins."""
    from clpstream import memory as limits
    from clpstream.cli import _tune_libraries
    from clpstream.transfer import Knn, index

    _tune_libraries()
    if name == "auto-always":
        index.CHEAP, index._WORTH = 0, 1
    anchors, wanted = (_Rows(place / f"{kind}.npy") for kind in ("anchors", "wanted"))
    before, cpu, begin = limits.peak_memory(), time.process_time(), time.monotonic()
    with limits.limited_to(memory << 20):
        search = Knn(index=name.removesuffix("-always")).prepare(anchors, wanted).search
    return {
        "seconds": time.monotonic() - begin,
        "cpu": time.process_time() - cpu,
        "bytes": limits.peak_memory() - before,
        "recall": 1.0 if search is None else search.recall,
        "way": "all compared" if search is None else f"{search.index}, {search.candidates}",
    }


class _Rows:
    """A matrix on disk, read as the rows of a checkpoint are: pages of a map would count too."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r")
        self.shape, self._path, self._offset = mapped.shape, path, mapped.offset

    def __getitem__(self, index: Any) -> np.ndarray:
        ids = np.arange(self.shape[0])[index]
        rows = np.empty((len(ids), self.shape[1]), np.float32)
        breaks = np.flatnonzero(np.diff(ids, prepend=-2) != 1)
        with self._path.open("rb") as file:
            for start, stop in zip(breaks, [*breaks[1:], len(ids)], strict=True):
                file.seek(self._offset + 4 * self.shape[1] * int(ids[start]))
                file.readinto(rows[start:stop].reshape(-1).view(np.uint8).data)
        return rows


def table(runs: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """Medians, in markdown. Times as often as exact, by CPU time."""
    lines = [
        f"Width {given.width}, {given.memory} MiB, medians of {given.rounds}.",
        "",
        "| anchors | wanted | index | compared | CPU s | times exact | seconds | MB | recall@10 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    grouped = defaultdict(list)
    for run in runs:
        grouped[run["size"], run["index"]].append(run)
    for (size, index), found in grouped.items():
        head = f"| {size:,} | {size * 3 // 5:,} | {index} |"
        if "error" in found[0]:
            lines.append(f"{head} {found[0]['error']} | | | | | |")
            continue
        cpu, seconds, used = (middle(found, key) for key in ("cpu", "seconds", "bytes"))
        exact = [run for run in grouped.get((size, "exact"), []) if "error" not in run]
        times = f"{cpu / middle(exact, 'cpu'):.2f}" if exact else ""
        lines.append(
            f"{head} {found[0]['way']} | {cpu:.1f} | {times} | {seconds:.1f} | {used / 1e6:.0f} | "
            f"{found[0]['recall']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def middle(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """CPU seconds and recall against the number of anchors, a line for each index."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    lines = defaultdict(dict)
    for run in runs:
        if "error" not in run:
            lines[run["index"]][run["size"]] = run
    for index, found in lines.items():
        for axis, key in zip(axes, ("cpu", "recall"), strict=True):
            axis.plot(list(found), [run[key] for run in found.values()], marker="o", label=index)
    axes[0].set(xlabel="anchors", ylabel="CPU seconds", xscale="log", yscale="log")
    axes[1].set(xlabel="anchors", ylabel="recall@10", xscale="log")
    for axis in axes:
        axis.grid(True, which="both", alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
