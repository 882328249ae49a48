"""Tables and plots of what curves.py measured.

    python bench/quality/report.py results

reads results/measurements.jsonl, and writes results/report.md and a plot for each pair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from arms import ARMS, BASELINES

MEASUREMENTS = "measurements.jsonl"
REPORT = "report.md"

Curve = dict[int, dict[int, float]]
"""Bits per byte of one arm on one pair, by step, then by seed."""


# --- reading -----------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """The measurements of a file, none if it is not there; a line cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: a line is cut short, and left out")
    return records


def key(record: Mapping[str, Any]) -> tuple[str, str, int, int]:
    """What a measurement is of."""
    return record["pair"], record["arm"], record["seed"], record["step"]


def curves_of(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """The measurements by pair and arm, the arms in the order of ARMS."""
    place = {name: index for index, name in enumerate(ARMS)}
    found: dict[str, dict[str, Curve]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: place.get(record["arm"], len(place))):
        curve = found[record["pair"]].setdefault(record["arm"], {})
        curve.setdefault(record["step"], {})[record["seed"]] = record["bits_per_byte"]
    return found


def mean(curve: Curve) -> dict[int, float]:
    """The mean over the seeds at each step, in the order of the steps."""
    return {step: float(np.mean(list(curve[step].values()))) for step in sorted(curve)}


def common_steps(curves: Mapping[str, Curve]) -> list[int]:
    """Steps that most arms have; baselines may go on for longer."""
    steps = sorted({step for curve in curves.values() for step in curve})
    return [step for step in steps if 2 * sum(step in c for c in curves.values()) > len(curves)]


# --- numbers -----------------------------------------------------------------------------------


def steps_to(curve: Mapping[int, float], goal: float) -> float | None:
    """The step at which a curve comes down to `goal`, None if it does not.

    Between two measurements the loss is taken to fall in a straight line over log(1 + step).
    """
    points = list(curve.items())
    if points and points[0][1] <= goal:
        return float(points[0][0])
    for (left, high), (right, low) in itertools.pairwise(points):
        if low <= goal:
            part = (high - goal) / (high - low)
            return math.expm1(math.log1p(left) * (1 - part) + math.log1p(right) * part)
    return None


def times_the_steps(curve: Mapping[int, float], baseline: Mapping[int, float], step: int) -> str:
    """How many times the steps a baseline needs for the loss that a curve has at a step."""
    reached = steps_to(baseline, curve[step])
    if reached is None:
        return f"> {max(baseline) / step:.1f}"
    return f"{reached / step:.1f}"


def rank_correlation(left: list[float], right: list[float]) -> float:
    """Spearman's: Pearson's of the ranks, equal values having their mean rank."""
    if len(left) < 3 or len(set(left)) < 2 or len(set(right)) < 2:
        return math.nan
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def gaps(curves: Mapping[str, Curve], step: int) -> dict[str, list[float]]:
    """How far each arm is behind the best one at a step, seed by seed: the data are the same."""
    there = {name: curve[step] for name, curve in curves.items() if step in curve}
    best = min(there.values(), key=lambda seeds: np.mean(list(seeds.values())))
    return {
        name: [value - best[seed] for seed, value in seeds.items() if seed in best]
        for name, seeds in there.items()
    }


def spread(values: list[float]) -> str:
    """The mean of some values, and their standard deviation if there are several."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


# --- tables ------------------------------------------------------------------------------------


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A markdown table; numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(name: str) -> str:
    """An arm's name, controls in italics."""
    return f"*{name}*" if name in ARMS and ARMS[name].control else name


def best_first(curves: Mapping[str, Curve], step: int) -> list[str]:
    """The arms by their loss at a step; those without it last."""
    return sorted(curves, key=lambda name: mean(curves[name]).get(step, math.inf))


def losses(curves: Mapping[str, Curve]) -> str:
    """Bits per byte, arm x step, and how far behind the best at the last step."""
    steps = sorted({step for curve in curves.values() for step in curve})
    last = common_steps(curves)[-1]
    behind = gaps(curves, last)
    rows = []
    for name in best_first(curves, last):
        cells = [spread(list(curves[name].get(step, {}).values())) for step in steps]
        rows.append([shown(name), *cells, spread(behind.get(name, []))])
    return table(["arm", *[f"step {step}" for step in steps], f"behind at {last}"], rows)


def catching_up(curves: Mapping[str, Curve], baseline: str) -> str:
    """Each arm's steps to the baseline's last loss, and the baseline's to the arm's losses."""
    against = mean(curves[baseline])
    steps = [step for step in common_steps(curves) if step]
    end = steps[-1]
    rows = []
    for name in best_first(curves, end):
        curve = mean(curves[name])
        if name == baseline:
            continue
        needed = steps_to(curve, against[end])
        ratios = [times_the_steps(curve, against, n) if n in curve else "" for n in steps]
        rows.append(
            [shown(name), f"> {max(curve)}" if needed is None else f"{needed:.0f}", *ratios]
        )
    head = ["arm", f"steps to {baseline}'s loss at {end}"]
    return table([*head, *[f"times the steps, at {step}" for step in steps]], rows)


def correlations(curves: Mapping[str, Curve]) -> str:
    """Whether step 0 tells which arms are best at the last step."""
    last = common_steps(curves)[-1]
    plain = [name for name in curves if name in ARMS and ARMS[name].control is None]
    found = []
    for names, what in ((plain, "settings of convert"), (list(curves), "arms, controls too")):
        both = [mean(curves[name]) for name in names]
        both = [curve for curve in both if 0 in curve and last in curve]
        value = rank_correlation([c[0] for c in both], [c[last] for c in both])
        found.append(f"{'-' if math.isnan(value) else f'{value:.2f}'} over {len(both)} {what}")
    return f"Rank correlation (Spearman) of step 0 with step {last}: {'; '.join(found)}."


def across(pairs: Mapping[str, dict[str, Curve]]) -> str:
    """Mean gap to the best arm of each pair, and how often an arm is the best."""
    common = [set(common_steps(curves)) for curves in pairs.values()]
    steps = sorted(set.intersection(*common))
    won: dict[str, int] = defaultdict(int)
    behind: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for curves in pairs.values():
        won[best_first(curves, steps[-1])[0]] += 1
        for step in steps:
            for name, values in gaps(curves, step).items():
                if values:
                    behind[name][step].append(float(np.mean(values)))
    rows = [
        [
            shown(name),
            str(len(behind[name][steps[-1]])),
            str(won[name]),
            *[f"{np.mean(v):.3f}" if (v := behind[name][step]) else "" for step in steps],
        ]
        for name in sorted(behind, key=lambda name: np.mean(behind[name][steps[-1]] or [math.inf]))
    ]
    return table(["arm", "pairs", "won", *[f"behind at {step}" for step in steps]], rows)


# --- the report --------------------------------------------------------------------------------


def file_name(pair: str) -> str:
    """The name of a pair's plot."""
    return f"{pair.replace(' + ', '_')}.png"


def pair_section(pair: str, curves: Mapping[str, Curve]) -> str:
    """All that is known of one pair."""
    counts = sorted({len(seeds) for curve in curves.values() for seeds in curve.values()})
    orders = " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    parts = [
        f"## {pair}",
        f"Bits per byte of held-out text, mean and standard deviation over {orders} orders of "
        "the data. *Behind*: the difference from the best arm on the same data.",
        losses(curves),
        f"![Loss against tokens]({file_name(pair)})",
        correlations(curves),
    ]
    last = common_steps(curves)[-1]
    for baseline in BASELINES:
        if last and last in curves.get(baseline, {}):
            parts += [
                f"### Against {baseline}",
                f"How many steps an arm needs for the loss that {baseline} ends with; and, for the "
                f"loss that the arm has at step N, how many times N steps {baseline} needs (0: it "
                "starts there; >: it does not get there in the steps that were measured).",
                catching_up(curves, baseline),
            ]
    return "\n\n".join(parts)


def report_of(pairs: Mapping[str, dict[str, Curve]]) -> str:
    """The whole report in markdown."""
    parts = [
        "# Which rows are best",
        "Controls are in italics. Between measurements, steps are interpolated on a logarithmic "
        "scale. The paper (CLP-Transfer, Ostendorff & Rehm 2023) saves up to 80 % of the training "
        "steps against random initialisation, that is, training from scratch needs up to 5 times "
        "the steps of its rows (`clp exact`).",
    ]
    if len(pairs) > 1:
        parts += ["## All pairs", "Mean over the pairs of the gap to the pair's best arm, in bits "]
        parts[-1] += "per byte; *won*: pairs on which the arm is the best at the last step."
        parts.append(across(pairs))
    parts += [pair_section(pair, curves) for pair, curves in pairs.items()]
    return "\n\n".join(parts) + "\n"


def plot(pair: str, curves: Mapping[str, Curve], tokens: Mapping[int, int], path: Path) -> None:
    """Loss against tokens on a logarithmic axis, step 0 at its left end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 6))
    colors = pyplot.get_cmap("tab20").colors
    for index, name in enumerate(best_first(curves, common_steps(curves)[-1])):
        curve = curves[name]
        steps = sorted(curve)
        x = [tokens[step] for step in steps]
        low = [min(curve[step].values()) for step in steps]
        high = [max(curve[step].values()) for step in steps]
        color = colors[index % len(colors)]
        dashed = name in ARMS and ARMS[name].control is not None
        axes.plot(x, list(mean(curve).values()), "--" if dashed else "-", color=color, label=name)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("symlog", linthresh=min((t for t in tokens.values() if t), default=1))
    axes.set_xlim(left=0)
    axes.set_ylim(top=_top(curves))
    axes.set(title=pair, xlabel="tokens of continued training", ylabel="held-out bits per byte")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _top(curves: Mapping[str, Curve]) -> float | None:
    """Above what convert makes and the baselines; other controls may not fit."""
    plain = [n for n in curves if n in BASELINES or (n in ARMS and ARMS[n].control is None)]
    highest = [max(mean(curves[name]).values()) for name in plain]
    return 1.05 * max(highest) if highest else None


def write(output: Path) -> None:
    """Write the report and the plots beside the measurements."""
    records = read(output / MEASUREMENTS)
    if not records:
        raise SystemExit(f"{output}: nothing is measured yet")
    pairs = curves_of(records)
    (output / REPORT).write_text(report_of(pairs), encoding="utf-8")
    for pair, curves in pairs.items():
        tokens = {r["step"]: r["tokens"] for r in records if r["pair"] == pair}
        plot(pair, curves, tokens, output / file_name(pair))
    print(f"{output / REPORT}: {len(records)} measurements of {len(pairs)} pairs")


def main() -> None:
    """Report on the directory that the command line names."""
    parser = argparse.ArgumentParser(description="Tables and plots of what curves.py measured.")
    parser.add_argument("results", type=Path, help="directory that curves.py wrote to")
    write(parser.parse_args().results)


if __name__ == "__main__":
    main()
