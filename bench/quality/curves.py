"""Measure which rows are best: held-out bits per byte before and during continued training.

For each pair of a source and a helper, each arm of arms.py makes a target; the held-out text is
scored with it at step 0, then the whole model is trained on text of the target language and scored
again after the steps that are given. A seed is an order of the training windows, the same for all
arms; what is random in a control depends on it too. The learning rate rises for a few steps and is
constant from there, so that a run can be made longer later.

    pip install ".[interop]" matplotlib
    python bench/quality/curves.py --pair models/source-en models/helper-de de.txt --output results

Each measurement is a line of results/measurements.jsonl, written at once. A run that is started
again leaves out what is there. At the end, report.py turns the lines into tables and plots.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import report
import torch
from arms import ARMS, BASELINES, Arm, RefusedError, convert
from controls import load_arm
from language_model import batches, bits_per_byte, make_optimizer, train_step
from text import bytes_of, encode, read_documents, sample_documents, split_documents
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging


@dataclass(frozen=True)
class Settings:
    """What all measurements have in common. rows, context: windows in a batch, and their tokens.

    held_out_bytes: about how much held-out text is scored.
    """

    rows: int
    context: int
    learning_rate: float
    warmup: int
    held_out_bytes: int
    bf16: bool


@dataclass(frozen=True)
class Pair:
    """A source, a helper, and a file of text in the helper's language."""

    source: Path
    helper: Path
    text: Path

    @property
    def name(self) -> str:
        return f"{self.source.name} + {self.helper.name}"


@dataclass(frozen=True)
class Tokens:
    """A pair's text as the target's tokenizer writes it. size: bytes of the held-out text."""

    training: torch.Tensor
    held_out: torch.Tensor
    size: int


@dataclass(frozen=True)
class Measurement:
    """A score, and what was trained until then. seconds: of training alone."""

    step: int
    tokens: int
    bits_per_byte: float
    seconds: float


class Results:
    """The file of measurements: what is in it, and more at its end."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = asdict(settings)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            path.write_bytes(path.read_bytes() + b"\n")  # a run was stopped within a line
        self._there = {report.key(record): record for record in report.read(path)}

    def missing(self, pair: Pair, name: str, seed: int, steps: list[int]) -> list[int]:
        """Those of the steps that are not measured yet."""
        known = {step: self._there.get((pair.name, name, seed, step)) for step in steps}
        for record in known.values():
            if record and record["settings"] != self._of(pair, name):
                raise SystemExit(
                    f"{self._path}: {pair.name}, {name} was measured with other settings, "
                    f"{record['settings']}; take another --output"
                )
        return [step for step, record in known.items() if record is None]

    def add(self, pair: Pair, name: str, seed: int, measurement: Measurement) -> None:
        """Write a line."""
        record = {
            "pair": pair.name,
            "arm": name,
            "seed": seed,
            **asdict(measurement),
            "settings": self._of(pair, name),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _of(self, pair: Pair, name: str) -> dict[str, Any]:
        return {"text": pair.text.name, **self._settings, **ARMS[name].to_json()}


def read_tokens(pair: Pair, settings: Settings) -> Tokens:
    """The pair's text, split and tokenized."""
    training, validation = split_documents(read_documents(pair.text))
    scored = sample_documents(validation, settings.held_out_bytes)
    tokenizer = AutoTokenizer.from_pretrained(pair.helper)
    special = [tokenizer.eos_token, tokenizer.bos_token]
    separators = [token for token in dict.fromkeys(special) if token is not None]
    ids = [encode(tokenizer.backend_tokenizer, part, separators) for part in (training, scored)]
    return Tokens(ids[0], ids[1], bytes_of(scored))


def measure(
    model: PreTrainedModel, tokens: Tokens, seed: int, steps: list[int], settings: Settings
) -> Iterator[Measurement]:
    """Train the model, and score it after each of the steps."""
    optimizer = make_optimizer(model)
    windows = batches(tokens.training, settings.context, settings.rows, seed)
    seen, seconds = 0, 0.0
    for step in range(max(steps) + 1):
        if step in steps:
            score = bits_per_byte(model, tokens.held_out, settings.context, tokens.size)
            yield Measurement(step, seen, round(score, 5), round(seconds, 2))
        if step == max(steps):
            break
        begin = time.monotonic()
        model.train()
        batch = next(windows)
        rate = settings.learning_rate * min(1.0, (step + 1) / settings.warmup)
        train_step(model, optimizer, batch, rate, settings.bf16)
        seen += batch[:, 1:].numel()
        seconds += time.monotonic() - begin


def measure_pair(pair: Pair, arguments: argparse.Namespace, settings: Settings) -> None:
    """Measure all arms of a pair, one seed after the other."""
    results = Results(arguments.output / report.MEASUREMENTS, settings)
    tokens = None
    refused: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in arguments.seeds:
            for name in arguments.arms:
                steps = results.missing(pair, name, seed, steps_of(name, arguments))
                if not steps or name in refused:
                    continue
                target = Path(scratch) / f"{arguments.arms.index(name)}"
                try:
                    make_target(ARMS[name], pair, target)
                except RefusedError as reason:
                    print(f"{pair.name}: {name}: left out: {reason}", flush=True)
                    refused.add(name)
                    continue
                tokens = tokens or read_tokens(pair, settings)
                model = load_arm(ARMS[name], target, seed).to(arguments.device)
                for measurement in measure(model, tokens, seed, steps, settings):
                    results.add(pair, name, seed, measurement)
                    print_line(pair, name, seed, measurement)


def make_target(arm: Arm, pair: Pair, target: Path) -> None:
    """Convert, unless an earlier seed has."""
    if not target.exists():
        convert(arm, pair.source, pair.helper, target)


def steps_of(name: str, arguments: argparse.Namespace) -> list[int]:
    """The steps at which an arm is scored."""
    more = arguments.baseline_steps if name in BASELINES else []
    return sorted({*arguments.steps, *more})


def print_line(pair: Pair, name: str, seed: int, measurement: Measurement) -> None:
    """Say what was measured."""
    print(
        f"{pair.name}: {name}, seed {seed}, step {measurement.step}: "
        f"{measurement.bits_per_byte:.3f} bits per byte, {measurement.seconds:.0f} s",
        flush=True,
    )


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(number) for number in text.split(",")]


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """The option that names pairs."""
    parser.add_argument(
        "--pair",
        type=Path,
        nargs=3,
        action="append",
        required=True,
        metavar=("SOURCE", "HELPER", "TEXT"),
        help="two models' directories and text in the helper's language; can be given again",
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure which rows are best.", epilog=f"Arms: {'; '.join(ARMS)}."
    )
    add_pairs(parser)
    parser.add_argument("--output", type=Path, required=True, help="directory of the results")
    parser.add_argument(
        "--arm", action="append", choices=ARMS, metavar="ARM", help="only this one; again for more"
    )
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="default: 0,1,2")
    parser.add_argument(
        "--steps", type=numbers, default=[0, 25, 50, 100, 200], help="default: 0,25,50,100,200"
    )
    parser.add_argument(
        "--baseline-steps",
        type=numbers,
        default=[],
        help=f"more steps for {', '.join(BASELINES)}: how long they take to catch up",
    )
    parser.add_argument("--batch", type=int, default=16, help="windows in a batch (default: 16)")
    parser.add_argument("--context", type=int, default=128, help="tokens in a window (128)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="default: 0.001")
    parser.add_argument("--warmup", type=int, default=10, help="steps until it is reached (10)")
    parser.add_argument("--held-out", type=int, default=60_000, help="bytes scored (60000)")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 mixed precision")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    arguments = parser.parse_args()
    arguments.arms = arguments.arm or list(ARMS)
    return arguments


def main() -> None:
    """Measure what the command line asks for, and write the report."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = Settings(
        rows=arguments.batch,
        context=arguments.context,
        learning_rate=arguments.learning_rate,
        warmup=arguments.warmup,
        held_out_bytes=arguments.held_out,
        bf16=arguments.bf16,
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    for pair in arguments.pair:
        measure_pair(Pair(*pair), arguments, settings)
    report.write(arguments.output)


if __name__ == "__main__":
    main()
