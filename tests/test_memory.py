"""What the machine and its container allow, and what a run makes of it."""

from __future__ import annotations

import os
import re
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make import write_helper

from clpstream import Knn, TransferError, convert, memory
from clpstream.transfer import gathered, gathering_bytes


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root directory with the groups of a process and the limits of some."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "sys/fs/cgroup/"
V1 = "sys/fs/cgroup/memory/"
GROUPS_V1 = "9:name=systemd:/\n4:cpu,memory:/docker/a1\n2:cpuset:/other\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {V2 + "a/b/memory.max": "300\n", V2 + "a/memory.max": "max\n"}, 300),
        ("0::/a/b\n", {V2 + "a/b/memory.max": "300\n", V2 + "a/memory.max": "200\n"}, 200),
        ("0::/a/b\n", {V2 + "a/b/memory.max": "max\n", V2 + "x/memory.max": "7\n"}, None),
        ("0::/\n", {V2 + "memory.max": "500\n"}, 500),  # a container with a namespace of its own
        ("0::/../x\n", {V2 + "memory.max": "500\n"}, 500),  # outside of that namespace
        (GROUPS_V1, {V1 + "docker/a1/memory.limit_in_bytes": "400\n"}, 400),
        (GROUPS_V1, {V1 + "memory.limit_in_bytes": "600\n"}, 600),  # only the container's is seen
        (GROUPS_V1, {V1 + "memory.limit_in_bytes": "9223372036854771712\n"}, None),
        (GROUPS_V1, {"sys/fs/cgroup/cpuset/other/memory.limit_in_bytes": "5\n"}, None),
        ("no group\n", {}, None),
    ],
)
def test_the_least_of_what_its_groups_may_have(tmp_path, groups, files, expected):
    found = memory.allowed_memory(system(tmp_path, groups, files))
    assert found == (expected or memory.allowed_memory(tmp_path / "nothing"))


def test_without_control_groups_it_is_the_machine_s_memory(tmp_path):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.allowed_memory(tmp_path) == pages


@pytest.fixture
def container(monkeypatch):
    """Sets what the container allows, above what this process has already."""

    def allow(room: int) -> None:
        allowed = memory.resident_memory() + room
        monkeypatch.setattr("clpstream.memory.allowed_memory", lambda: allowed)

    return allow


@pytest.mark.skipif(sys.platform != "linux", reason="needs the resident memory of now")
def test_a_container_s_limit_is_the_run_s_unless_another_is_given(
    pair, tmp_path, container, monkeypatch
):
    # other tests' peak is this process' too, and could be more than both
    monkeypatch.setattr("clpstream.conversion.peak_memory", memory.resident_memory)
    container(100 << 20)
    small = convert(pair.source, pair.helper, tmp_path / "small", dry_run=True)
    container(1 << 50)
    large = convert(pair.source, pair.helper, tmp_path / "large", dry_run=True)
    assert small.memory_needed < large.memory_needed

    write_helper(tmp_path / "wide", width=3000)
    container(64 << 20)
    with pytest.raises(TransferError, match=r"align needs .* container leaves \d+ MiB"):
        convert(pair.source, tmp_path / "wide", pair.output)
    assert not pair.output.exists()
    convert(pair.source, tmp_path / "wide", pair.output, max_memory=1 << 30, dry_run=True)


def test_an_error_for_too_little_memory_names_methods_that_get_along(pair, tmp_path):
    wide = tmp_path / "wide"
    write_helper(wide, width=3000)
    allowed = {"max_memory": 64 << 20}
    with pytest.raises(TransferError, match=r"align needs .* choose --method ") as error:
        convert(pair.source, wide, pair.output, **allowed)
    named = re.search(r"--method ([a-z]+(?: or [a-z]+)*)", str(error.value))
    for method in named[1].split(" or "):
        convert(pair.source, wide, tmp_path / method, method=method, shared="copy", **allowed)


def test_where_no_method_gets_along_none_is_named(pair, tmp_path):
    write_helper(tmp_path / "wide", width=3000)
    with pytest.raises(TransferError) as error:
        convert(pair.source, tmp_path / "wide", pair.output, method="ridge", max_memory=1 << 20)
    assert "--method" not in str(error.value)


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of Python's and numpy's own that are in use at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [Knn(), Knn(neighbors=200), Knn(weights="sparsemax")])
def test_any_number_of_neighbours_takes_no_more_memory_than_was_said(method):
    random = np.random.default_rng(0)
    spread = np.where(np.arange(32) < 3, 10, 1).astype(np.float32)  # most cosines are close to 1
    anchors, wanted = (
        random.standard_normal((count, 32), np.float32) * spread for count in (5000, 8000)
    )
    source = random.standard_normal((5000, 8), np.float32)
    with memory.limited_to(32 << 20):
        told = method.working_bytes(5000, 8000, 32, 8)
        assert peak_of(lambda: method.prepare(anchors, wanted).rows(source)[:100]) <= told


def test_rows_of_many_pieces_take_no_more_memory_than_was_said():
    source = np.ones((1000, 64), np.float32)
    groups = [(n % 1000, n % 7, n % 11) for n in range(50_000)]
    with memory.limited_to(32 << 20):
        told = gathering_bytes(50_000, 150_000, 64) + 3 * memory.block_bytes()
        assert peak_of(lambda: gathered(groups, lambda n: [1 / n] * n, source)[:100]) <= told


def test_what_other_programs_do_to_this_one_s_memory_changes_nothing(pair, tmp_path, monkeypatch):
    """Two runs never measure the same; blocks, and so the last bits of sums, don't depend on it."""
    needed = set()
    for taken in range(0, 13_000, 500):  # of a plan for 69 tokens, with some tensors
        measured = iter([1 << 20, (1 << 20) + taken])
        monkeypatch.setattr("clpstream.conversion.resident_memory", lambda m=measured: next(m))
        monkeypatch.setattr("clpstream.conversion.peak_memory", lambda: 0)
        found = convert(pair.source, pair.helper, tmp_path / "x", dry_run=True)
        needed.add(found.memory_needed)
    assert len(needed) == 1


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs advice to the kernel")
@pytest.mark.parametrize(("allowed", "expected"), [(100, False), (1 << 40, True)])
def test_only_what_fits_in_memory_is_read_ahead(pair, monkeypatch, allowed, expected):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *advice: asked.append(advice))
    module = sys.modules["clpstream.checkpoint.read_ahead"]  # of the same name as the function
    monkeypatch.setattr(module, "allowed_memory", lambda: allowed)
    threads = set(threading.enumerate())
    convert(pair.source, pair.helper, pair.output)
    for thread in set(threading.enumerate()) - threads:
        thread.join()
    assert bool(asked) == expected
