"""The scripts of bench/speed work; what they measure is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make import read_json, read_tensors

import clpstream

SPEED = Path(__file__).parent.parent / "bench" / "speed"
SHAPE = (
    *("--source-rows", "600", "--helper-rows", "500", "--width", "32", "--helper-width", "16"),
    *("--body-bytes", "100K", "--shards", "3", "--overlap", "0.5"),
)


def script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(SPEED / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("speed") / "workload"
    script("workload.py", place, *SHAPE)
    return place


@pytest.mark.parametrize("method", ["mean", "clp"])
def test_a_workload_is_converted(workload: Path, tmp_path: Path, method: str) -> None:
    done = clpstream.convert(
        workload / "source", workload / "helper", tmp_path / "target", method=method, shared="copy"
    )
    assert read_json(workload / "source/config.json")["num_hidden_layers"] == 3
    assert len(list((workload / "source").glob("*.safetensors"))) == 3
    assert done.report.counts.shared == 257 + 122  # half of the 243 words
    made = read_tensors(tmp_path / "target")
    assert made["model.embed_tokens.weight"].shape == made["lm_head.weight"].shape == (500, 32)


def test_a_hole_is_as_long_as_what_it_stands_for(workload: Path, tmp_path: Path) -> None:
    script("workload.py", tmp_path / "holes", *SHAPE, "--sparse", "--tied")
    dense, sparse = (read_tensors(place / "source") for place in (workload, tmp_path / "holes"))
    assert set(dense) - set(sparse) == {"lm_head.weight"}
    for name, tensor in sparse.items():
        assert tensor.shape == dense[name].shape
        is_same = np.array_equal(tensor, dense[name])
        assert is_same if "embed" in name else not tensor.any()


def test_a_run_gives_a_table_and_its_numbers(workload: Path, tmp_path: Path) -> None:
    models = ("--source", workload / "source", "--helper", workload / "helper")
    table = script(
        *("run.py", "--output", tmp_path, *models, "--repeats", 1, "--only", "cp", "mean"),
        *("--convert-option", "--shared copy"),
    )
    assert "| mean | " in table and "| 1.00 |" in table
    assert (tmp_path / "report.md").read_text("utf-8") in table
    cp, mean = json.loads((tmp_path / "results.json").read_text("utf-8"))["runs"]
    assert cp["written"] == cp["source_bytes"] > mean["written"] > 100_000
    assert 1e6 < cp["peak"] < mean["peak"]
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("results.json", "report.md", "report.png")
    }


def test_what_a_device_is_worth_is_a_table() -> None:
    """On the CPU twice, for want of a GPU: the same rows."""
    sizes = ("--anchors", 300, "--wanted", 90, "--helper-width", 16, "--width", 24)
    lines = script("gpu.py", "--device", "cpu", *sizes, "--rounds", 1).splitlines()[2:]
    methods = [line.split()[1] for line in lines]
    assert methods == ["clp", "ridge", "procrustes", "align", "knn", "omp"]
    assert all(line.split()[-2] == "0.0e+00" for line in lines)


def test_a_command_that_fails_is_in_the_table(workload: Path, tmp_path: Path) -> None:
    models = ("--source", workload / "source", "--helper", workload / "source/config.json")
    options = ("--repeats", 2, "--only", "mean")
    assert "| mean | failed (2)" in script("run.py", "--output", tmp_path, *models, *options)
