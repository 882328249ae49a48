"""The table and the plot of what run.py measured.

    python bench/speed/report.py results

reads results/results.json, and writes results/report.md and results/report.png.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from commands import FLOOR, IN_MEMORY, PRODUCTS

RESULTS, REPORT, PLOT = "results.json", "report.md", "report.png"

Run = dict[str, Any]


def write(directory: Path) -> str:
    """Write the report and the plot; returns the report."""
    results = json.loads((directory / RESULTS).read_text("utf-8"))
    text = report(results)
    (directory / REPORT).write_text(text, "utf-8")
    plot(results["runs"], directory / PLOT)
    return text


def report(results: dict[str, Any]) -> str:
    machine, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB; "
        f"{machine['system']}, Python {machine['python']}; {versions}; commit {machine['commit']}.",
        f"Page cache {'cold' if settings['cold'] else 'warm'}; "
        f"medians of {settings['repeats']} interleaved runs (least to most).",
    ]
    if settings["rlimit_data"]:
        lines.append(f"No process could allocate more than {settings['rlimit_data']:,} bytes.")
    for runs in by(results["runs"], "source_bytes").values():
        lines += ["", f"Source of {runs[0]['source_bytes'] / 1e9:.2f} GB:", "", *table(runs)]
    return "\n".join(lines) + "\n"


def table(runs: list[Run]) -> list[str]:
    """A line of markdown for each command. Ratios are of runs of the same repeat."""
    times_floor, times_memory = f"x {FLOOR}", f"x {IN_MEMORY}"
    titles = ["command", "seconds", "CPU seconds", "peak MB", times_floor, times_memory]
    titles.append("x the larger of cp and products")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    commands = by(runs, "command")
    for name, found in commands.items():
        good = [run for run in found if not run["code"]]
        if len(good) < len(found):
            reason = "".join(found[-1].get("error") or []).replace("|", "/")[:80]
            lines.append(f"| {name} | failed ({found[-1]['code']}): {reason} | | | | | |")
            continue
        cells = [
            spread([run["wall"] for run in good]),
            f"{statistics.median(run['user'] + run['system'] for run in good):.2f}",
            f"{statistics.median(run['peak'] for run in good) / 1e6:.0f}",
            times(good, commands.get(FLOOR, [])),
            times(good, commands.get(IN_MEMORY, [])),
            times(good, larger(commands.get(FLOOR, []), commands.get(PRODUCTS + name, []))),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def larger(runs: list[Run], others: list[Run]) -> list[Run]:
    """Of two runs of the same repeat, the one that took longer."""
    pairs = [(run, other) for run in runs for other in others if run["repeat"] == other["repeat"]]
    return [max(pair, key=lambda run: run["wall"]) for pair in pairs]


def times(runs: list[Run], others: list[Run]) -> str:
    """The median of how many times the seconds of the other the runs took."""
    walls = {run["repeat"]: run["wall"] for run in others if not run["code"]}
    ratios = [run["wall"] / walls[run["repeat"]] for run in runs if run["repeat"] in walls]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def by(runs: list[Run], key: str) -> dict[Any, list[Run]]:
    found = defaultdict(list)
    for run in runs:
        found[run[key]].append(run)
    return found


def plot(runs: list[Run], path: Path) -> None:
    """Seconds and peak memory against the size of the source, a line for each command."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name, found in by([run for run in runs if not run["code"]], "command").items():
        sizes = by(found, "source_bytes")
        style = {"label": name, "marker": "o", "linestyle": "--" if "-" in name else "-"}
        for axis, key, unit in ((axes[0], "wall", 1), (axes[1], "peak", 1e6)):
            middle = [statistics.median(run[key] for run in sizes[size]) / unit for size in sizes]
            axis.plot([size / 1e9 for size in sizes], middle, **style)
    for axis, title in zip(axes, ("seconds", "peak memory, MB"), strict=True):
        axis.set(xlabel="source, GB", ylabel=title, xscale="log", yscale="log")
        axis.grid(True, which="both", alpha=0.3)
    axes[1].legend(bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
