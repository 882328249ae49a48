"""What is compared: a name for each command, and how it is called."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import products

HERE = Path(__file__).parent
METHODS = ("mean", "clp", "ridge", "procrustes", "align", "knn", "omp")
PAPER = ("--method", "clp", "--shared", "copy", "--match", "exact")
FLOOR, IN_MEMORY = "cp", "in-memory-clp"
"""What the others are divided by."""
DRIVER = "nvidia-smi"
"""A program that comes with the driver of a GPU."""
PRODUCTS = "products-"
"""What the name of a method follows, for its products of matrices alone."""


@dataclass(frozen=True)
class Command:
    """Words of a command line, in which SOURCE, HELPER and OUTPUT stand for the directories.

    needs: a program, or a module of Python, without which it is left out. prints_seconds: they are
    what counts, and not those of the process.
    """

    words: tuple[str, ...]
    needs: str | None = None
    prints_seconds: bool = False

    @property
    def missing(self) -> bool:
        if self.needs is None or shutil.which(self.needs):
            return False
        return importlib.util.find_spec(self.needs) is None

    def line(self, source: Path, helper: Path, output: Path) -> list[str]:
        places = {"SOURCE": source, "HELPER": helper, "OUTPUT": output}
        return [str(places.get(word, word)) for word in self.words]


def commands(convert_options: Sequence[str], tokensurgeon: str) -> dict[str, Command]:
    """All commands by name. cp-sync waits for the disk, as clpstream does; cp does not."""
    found = {
        "cp": Command(("cp", "-r", "SOURCE", "OUTPUT")),
        "cp-sync": Command(("sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', "SOURCE", "OUTPUT")),
        "dry-run": _clpstream("--dry-run", *convert_options),
    }
    conversions = {"paper": PAPER, **{name: ("--method", name) for name in METHODS}}
    for name, options in conversions.items():
        found[name] = _clpstream(*options, *convert_options)
        found[f"{name}-cuda"] = _clpstream(
            *options, "--device", "cuda", *convert_options, needs=DRIVER
        )
    found |= {PRODUCTS + name: _products(name) for name in products.METHODS}
    found |= {
        IN_MEMORY: _in_memory("clp", "auto"),
        "in-memory-clp-float32": _in_memory("clp", "float32"),
        "in-memory-knn": _in_memory("knn", "auto"),
        "tokensurgeon": Command((tokensurgeon, "SOURCE", "HELPER", "OUTPUT"), tokensurgeon),
    }
    return found


def _clpstream(*options: str, needs: str | None = None) -> Command:
    line = (sys.executable, "-m", "clpstream", "convert", "SOURCE", "HELPER", "OUTPUT")
    return Command((*line, "--quiet", *options), needs)


def _products(method: str) -> Command:
    line = (sys.executable, str(HERE / "products.py"), "SOURCE", "HELPER", "--method", method)
    return Command(line, prints_seconds=True)


def _in_memory(method: str, dtype: str) -> Command:
    line = (sys.executable, str(HERE / "in_memory.py"), "SOURCE", "HELPER", "OUTPUT")
    return Command((*line, "--method", method, "--dtype", dtype), "torch")
