"""Fixtures that several files of tests use."""

from __future__ import annotations

import ctypes
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: before numpy is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from make import write_helper, write_source

from clpstream.memory import DEFAULT, limited_to

os.environ["HF_HUB_OFFLINE"] = "1"  # a mistyped directory could be a model on the Hub


@pytest.fixture(params=[False, True], ids=["roomy", "lean"])
def roomy_or_lean(request: pytest.FixtureRequest) -> Iterator[None]:
    """With enough memory, and with less, where the same is made in slower ways."""
    with limited_to(DEFAULT, lean=request.param):
        yield


class Pair(NamedTuple):
    """A small source and helper, and a place for the target."""

    source: Path
    helper: Path
    output: Path


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """An untied llama in two shards and a helper; both tokenizers are byte-level."""
    write_source(tmp_path / "source", "llama", shards=2)
    write_helper(tmp_path / "helper")
    return Pair(tmp_path / "source", tmp_path / "helper", tmp_path / "target")


def obey_modes() -> None:
    """To call in a child before it starts a program: modes of files hold for root too."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
