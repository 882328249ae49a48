"""Bytes that go into a file past the kernel's cache, and through it, at any place."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clpstream.errors import OutputError
from clpstream.memory import limited_to
from clpstream.output import stream as module
from clpstream.output.stream import buffer_bytes, stream

PAGE = mmap.PAGESIZE
SMALL = 64 * 2 * PAGE
"""A limit of memory with which a buffer has two pages."""


def content(count: int, seed: int = 0) -> bytes:
    return bytes((7 * n + n // 251 + seed) % 256 for n in range(count))


@pytest.fixture(params=["direct", "cached"])
def way(request, monkeypatch, tmp_path):
    """By direct I/O, where the file system of the tests has it, and without."""
    if request.param == "cached":
        monkeypatch.setattr(module, "_on_disk", lambda fd: False)
    else:
        with stream(tmp_path / "probe") as out:
            if not isinstance(out, module._Direct):
                pytest.skip("no direct I/O in the file system of the tests")
    return request.param


PIECES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 3 * PAGE), st.integers(0, 2 * PAGE)),
    min_size=1,
    max_size=6,
)


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(start=st.integers(0, 2 * PAGE), pieces=PIECES)
def test_what_is_written_stands_where_it_should(way, tmp_path, start, pieces):
    """Data and parts of another file, with and without gaps that hold something else."""
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"\xff" * 24 * PAGE)
    other.write_bytes(content(4 * PAGE, 3))
    expected, place = bytearray(path.read_bytes()), start
    with limited_to(SMALL), stream(path, start) as out:
        assert buffer_bytes() == 2 * PAGE
        for copied, count, gap in pieces:
            if copied:
                out.copy(other, 100, count, lambda done: None, shared=True)
                data = other.read_bytes()[100 : 100 + count]
            else:
                data = content(count)
                out.write(data)
            expected[place : place + count] = data
            place += count + gap
            if gap:
                out.seek(place)
    assert path.read_bytes() == expected


def test_two_streams_share_a_page(way, tmp_path):
    """As the tensors of a shard do, of which a thread copies one and another is made."""
    path, whole = tmp_path / "file", content(10 * PAGE)
    cut = 5 * PAGE + 123
    with limited_to(SMALL), stream(path, cut) as last, stream(path) as first:
        for start in range(0, cut, 1000):
            first.write(whole[start : min(start + 1000, cut)])
            last.write(whole[cut + start : min(cut + start + 1000, len(whole))])
    assert path.read_bytes() == whole


def test_a_copy_tells_how_far_it_is(way, tmp_path):
    other, told = tmp_path / "other", []
    other.write_bytes(content(9 * PAGE))
    with limited_to(SMALL), stream(tmp_path / "file") as out:
        out.copy(other, 5, 9 * PAGE - 5, told.append, shared=False)
    assert sum(told) == 9 * PAGE - 5


def test_a_file_that_became_shorter_is_an_error(way, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(content(100))
    with pytest.raises(OutputError, match="shorter"), stream(tmp_path / "file") as out:
        out.copy(other, 50, 51, lambda done: None, shared=True)


@pytest.mark.parametrize("taken", [0, 512])
def test_a_disk_that_takes_no_pages_gets_them_through_the_cache(tmp_path, monkeypatch, taken):
    """An error for what does not lie as it should, or a write that ends within a page."""
    pwrite = os.pwrite

    def refuse(fd: int, data: memoryview, offset: int) -> int:
        if _is_direct(fd):
            if not taken:
                raise OSError(errno.EINVAL, "Invalid argument")
            return pwrite(out._cached, data[:taken], offset)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    path, data = tmp_path / "file", content(11 * PAGE + 17)
    with limited_to(SMALL), stream(path, 33) as out:
        if not isinstance(out, module._Direct):
            pytest.skip("no direct I/O in the file system of the tests")
        out.write(data)
    assert path.read_bytes()[33:] == data


def _is_direct(fd: int) -> bool:
    flags = int(Path(f"/proc/self/fdinfo/{fd}").read_text().split("flags:")[1].split()[0], 8)
    return bool(flags & os.O_DIRECT)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"), stream(tmp_path / "file") as out:
        if not isinstance(out, module._Direct):
            pytest.skip("no direct I/O in the file system of the tests")
        out.write(content(3 * PAGE))
