"""What is compared: settings of clpstream.convert, and controls that take its rows apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clpstream
from clpstream.transfer import METHODS


@dataclass(frozen=True)
class Arm:
    """One way to make the model that training goes on with.

    method: a name of clpstream.transfer.METHODS. options: its parameters.
    convert: other arguments of clpstream.convert.
    control: what is done to the converted model before it is trained, by name in controls.CONTROLS.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    convert: Mapping[str, Any] = field(default_factory=dict)
    control: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The arm as it is kept with its results."""
        settings = {"method": self.method, **self.options, **self.convert}
        return settings if self.control is None else {**settings, "control": self.control}


class RefusedError(Exception):
    """This version of clpstream can't make the arm; the message says why."""


PAPER = {"shared": "copy", "match": "exact"}
COPY = {"shared": "copy"}
MAP = {"shared": "map"}
AUTO = {"shared": "auto"}

ARMS = {
    "clp exact": Arm("clp", convert=PAPER),
    "clp": Arm("clp", convert=COPY),
    "clp clip-negative": Arm("clp", {"clip_negative": True}, COPY),
    "knn softmax": Arm("knn", {"weights": "softmax"}, COPY),
    "knn sparsemax": Arm("knn", {"weights": "sparsemax"}, COPY),
    "knn not centred": Arm("knn", {"center": False}, COPY),
    "knn auto": Arm("knn", convert=AUTO),
    "omp k=8": Arm("omp", {"atoms": 8}, COPY),
    "omp k=64": Arm("omp", {"atoms": 64}, COPY),
    "ridge": Arm("ridge", convert=COPY),
    "ridge map": Arm("ridge", convert=MAP),
    "procrustes": Arm("procrustes", convert=COPY),
    "procrustes map": Arm("procrustes", convert=MAP),
    "procrustes auto": Arm("procrustes", convert=AUTO),
    "align copy": Arm("align", convert=COPY),
    "align map": Arm("align", convert=MAP),
    "align auto": Arm("align", convert=AUTO),
    "align no rounds": Arm("align", {"rounds": 0}, AUTO),
    "mean": Arm("mean", convert=COPY),
    "subword": Arm("subword", convert=COPY),
    "random": Arm("random", convert=COPY),
    "all rows random": Arm("knn", convert=COPY, control="random rows"),
    "from scratch": Arm("knn", convert=COPY, control="fresh model"),
    "align auto, fresh body": Arm("align", convert=AUTO, control="fresh body"),
    "align auto, rotated": Arm("align", convert=AUTO, control="random rotation"),
}
"""Every arm by its name on the command line and in the results."""

BASELINES = ("from scratch", "all rows random", "random")
"""Arms whose steps are compared with those of the others. The paper's "random initialization", of
which it says that it needs five times the steps, is training from scratch."""


def convert(arm: Arm, source: Path, helper: Path, output: Path) -> None:
    """Make the arm's target; raises RefusedError if this version of clpstream can't."""
    try:
        clpstream.convert(source, helper, output, method=method_of(arm), **arm.convert)
    except clpstream.TransferError as error:
        raise RefusedError(str(error)) from None


def method_of(arm: Arm) -> Any:
    """What `clpstream.convert` and `evaluate` take as the method; raises RefusedError."""
    if not arm.options:
        return arm.method
    if arm.method not in METHODS:
        raise RefusedError(f"there is no method {arm.method!r}")
    try:
        return METHODS[arm.method](**arm.options)
    except TypeError as error:  # a parameter that it does not have
        raise RefusedError(str(error)) from None
