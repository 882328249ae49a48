"""Memory and time follow the vocabulary, not the model. Large models are sparse files here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from make import write_helper, write_json, write_source, write_tokenizer

from clpstream.transfer import METHODS

ROWS, WIDTH = 2_000, 256


def write_sparse_source(directory: Path, pass_through_bytes: int, shards: int) -> None:
    """A llama whose shards are holes, but for their headers: no disk is used."""
    write_tokenizer(directory, [f" word{n}" for n in range(ROWS - 1)])
    write_json(directory / "config.json", {"model_type": "llama", "vocab_size": ROWS})
    weight_map = {}
    for place in range(shards):
        tensors = {
            f"model.layers.{place}.mlp.weight": [pass_through_bytes // shards // 2 // 1024, 1024]
        }
        if place == 0:
            tensors["model.embed_tokens.weight"] = [ROWS, WIDTH]
        if place == shards - 1:
            tensors["lm_head.weight"] = [ROWS, WIDTH]
        name = f"model-{place + 1:05}-of-{shards:05}.safetensors"
        write_sparse_shard(directory / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": 0}, "weight_map": weight_map},
    )


def write_sparse_shard(path: Path, tensors: dict[str, list[int]]) -> None:
    header, end = {}, 0
    for name, (rows, width) in tensors.items():
        begin, end = end, end + 2 * rows * width
        header[name] = {"dtype": "BF16", "shape": [rows, width], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def run(*arguments: object) -> dict:
    """The result of the command in a process of its own, as it prints it."""
    command = [sys.executable, "-m", "clpstream", "convert", "--json", "--quiet"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_peak_memory_does_not_grow_with_the_model(tmp_path, method):
    write_helper(tmp_path / "helper", [f" word{n}" for n in range(0, 2 * ROWS, 2)], width=64)
    peaks = []
    for factor in (6, 18):  # in both, copying takes longer than making rows
        source = tmp_path / f"source-{factor}"
        write_sparse_source(source, factor * (40 << 20), shards=2)
        result = run(source, tmp_path / "helper", tmp_path / f"out-{factor}", "--method", method)
        peaks.append(result["peak_memory"])
        assert result["pass_through"]["bytes"] == factor * (40 << 20)
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's /proc/self/io")
def test_a_dry_run_reads_headers_and_tokenizers_only(tmp_path):
    write_helper(tmp_path / "helper")
    write_sparse_source(tmp_path / "source", 40 << 30, shards=8)
    code = (
        "import sys, clpstream, faiss, safetensors\n"
        "def count(): return int(open('/proc/self/io').read().split()[1])\n"
        "clpstream.convert(*sys.argv[1:], dry_run=True); before = count()\n"
        "clpstream.convert(*sys.argv[1:], dry_run=True); print(count() - before)"
    )
    arguments = [tmp_path / name for name in ("source", "helper", "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    vocabulary_bytes = 2 * 2 * ROWS * WIDTH
    assert int(done.stdout) < 2 * vocabulary_bytes + (4 << 20)


def test_a_dry_run_of_40_gb_knows_what_would_be_done(tmp_path):
    write_helper(tmp_path / "helper")
    write_sparse_source(tmp_path / "source", 40 << 30, shards=8)
    result = run(tmp_path / "source", tmp_path / "helper", tmp_path / "out", "--dry-run")
    assert result["output"] is None
    assert result["pass_through"] == {"tensors": 8, "bytes": 40 << 30}
    assert result["bytes_to_write"] > 40 << 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["helper", "source"]


LIMIT = 64 << 20
LIMITED = """
import resource, sys, threading
import faiss, numpy as np
import clpstream
from clpstream.cli import _tune_libraries

_tune_libraries()
threading.stack_size(1 << 20)  # of the limit, stacks count in full
some = np.ones((2000, 256), np.float32)
faiss.knn(some @ some[:256], some, 3)  # the libraries start their threads and take their buffers
status = open("/proc/self/status").read()
limit = int(sys.argv[1])
data = 1024 * int(status.split("VmData:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (data + limit, data + limit))
clpstream.convert(*sys.argv[4:], method=sys.argv[2], shared=sys.argv[3], max_memory=limit)
try:
    np.empty(limit, np.uint8)
except MemoryError:
    print("limited")
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Source and helper: as float32, each of the source's two tables takes three times LIMIT."""
    directory = tmp_path_factory.mktemp("wide")
    write_source(
        directory / "source",
        words=[f" word{n}" for n in range(12_000)],
        width=4096,
        dtype="BF16",
        untied=True,
    )
    half = [f" {('word', 'other')[n % 2]}{n}" for n in range(12_000)]  # of another language
    write_helper(directory / "helper", half, width=64)
    return directory / "source", directory / "helper"


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's RLIMIT_DATA")
@pytest.mark.parametrize(
    "method, shared",
    [("align", "auto"), ("clp", "auto")]
    + [(method, "copy") for method in sorted(METHODS) if method != "align"],
)
def test_a_run_keeps_to_a_limit_that_the_kernel_enforces(wide, tmp_path, method, shared):
    output = tmp_path / "out"
    arguments = [str(LIMIT), method, shared, *map(str, wide), str(output)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True
    )
    assert done.stdout == "limited\n", done.stderr
    report = json.loads((output / "clpstream.json").read_text("utf-8"))
    assert (report["options"]["shared"], report["sharing"] is None) == (shared, shared == "copy")
