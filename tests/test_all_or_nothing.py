"""Either the whole output exists, or none of it; and inputs are never written to.

Runs are stopped at known places: a small program replaces one function of the pipeline by one
that says where it is and waits for a line on stdin, and then runs the command line as it is.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Pair, obey_modes
from make import read_tensors, write_helper, write_source
from safetensors import safe_open
from safetensors.numpy import save_file

import clpstream

PROGRAM = """
import ctypes, os, select, shutil, signal, sys
from pathlib import Path
from clpstream import cli, conversion
from clpstream.output import writing

signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run

def stop_here():
    print("here", flush=True)
    while not select.select([0], [], [], 0.05)[0]:
        pass  # Python sees a signal that comes just before a call only once the call returns
    os.read(0, len("go on\\n"))

def stopping(function, before):
    def wrapper(*arguments, **more):
        if before:
            stop_here()
        result = function(*arguments, **more)
        if not before:
            stop_here()
        return result
    return wrapper

place = sys.argv[1]
if place in ("first shard", "first shard and tidying"):
    writing.Writing.write = stopping(writing.Writing.write, before=False)
elif place == "whole, verified":
    conversion.verify = stopping(conversion.verify, before=False)
if place in ("in its place", "first shard and tidying"):
    shutil.rmtree = stopping(shutil.rmtree, before=True)
if place in ("no exchange", "between renames"):
    class NoExchange:
        def __init__(self, *arguments, **more):
            pass
    ctypes.CDLL = NoExchange
    if place == "between renames":
        rename, count = Path.rename, 0
        def counting(*arguments, **more):
            global count
            count += 1
            if count == 2:
                stop_here()
            return rename(*arguments, **more)
        Path.rename = counting

sys.argv = ["clpstream", "convert", "--quiet", *sys.argv[2:]]
cli.main()
"""

PLACES = ["first shard", "whole, verified"]
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
SIGNALS = [pytest.param(number, id=number.name) for number in EXIT_CODES]
POLITE = [pytest.param(number, id=number.name) for number in (signal.SIGINT, signal.SIGTERM)]
FIRST = "model-00001-of-00002.safetensors"


def spawn(place: str, *arguments: str | Path, **settings: Any) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLPSTREAM_")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, place, *map(str, arguments)],
        env={**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


@contextlib.contextmanager
def stopped(place: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A run that stands at `place`."""
    with spawn(place, *arguments) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n", process.communicate()[1]
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[str], number: int | None = None) -> tuple[int, str]:
    """Send a signal, or let the run go on; its exit code and stderr."""
    if number is not None:
        process.send_signal(number)
    _, stderr = process.communicate("go on\n" * 9, timeout=60)
    return process.returncode, stderr.strip()


def run(*arguments: str | Path, place: str = "nowhere", **settings: Any) -> tuple[int, str]:
    """A run that goes through: its exit code and stderr."""
    with spawn(place, *arguments, **settings) as process:
        _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr.strip()


def content(directory: Path) -> dict[str, bytes | str]:
    """Everything in a directory, hidden or not."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else "directory"
        for path in sorted(directory.rglob("*"))
    }


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def spoil(shard: Path, tensor: str) -> None:
    """Put NaN into every row of a tensor."""
    with safe_open(shard, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found[tensor] = np.full_like(found[tensor], np.nan)
    save_file(found, shard, metadata={"format": "pt"})


def write_old(output: Path) -> dict[str, bytes | str]:
    """Something older where the output goes, a model by its names alone; its content."""
    (output / "notes").mkdir(parents=True)
    (output / "config.json").write_text("{}")
    (output / "notes" / "diary.txt").write_text("of yesterday")
    (output / "model.safetensors").write_bytes(b"old weights")
    (output / ".hidden").write_text("old")
    return content(output)


@pytest.fixture
def expected(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | str]:
    """What an undisturbed run writes."""
    output = tmp_path_factory.mktemp("expected") / "target"
    clpstream.convert(pair.source, pair.helper, output)
    return content(output)


# --- stopped by a signal


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_run_leaves_no_output(pair: Pair, place: str, number: int) -> None:
    """Exit codes 130, 143 and -9; a polite end leaves no hidden file either, and says so."""
    before = content(pair.source), content(pair.helper)
    with stopped(place, *pair) as process:
        assert not pair.output.exists()
        code, stderr = end(process, number)
    assert code == EXIT_CODES[signal.Signals(number)]
    assert not pair.output.exists()
    if number != signal.SIGKILL:
        assert names(pair.output.parent) == ["helper", "source"]
        assert "Traceback" not in stderr
        assert stderr.startswith("clpstream: ")
        assert stderr.endswith("nothing half-written is left")
        assert len(stderr.splitlines()) == 1
    assert (content(pair.source), content(pair.helper)) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_run_with_overwrite_keeps_the_old_output(pair: Pair, number: int) -> None:
    """Byte for byte, even if the new one was whole already."""
    old = write_old(pair.output)
    with stopped("whole, verified", *pair, "--overwrite") as process:
        assert content(pair.output) == old
        end(process, number)
    assert content(pair.output) == old
    if number != signal.SIGKILL:
        assert names(pair.output.parent) == ["helper", "source", "target"]


def test_a_run_killed_once_the_new_output_is_in_place_leaves_it_whole(
    pair: Pair, expected: dict[str, bytes | str]
) -> None:
    """While the old one is being removed, the new one stands."""
    write_old(pair.output)
    with stopped("in its place", *pair, "--overwrite") as process:
        end(process, signal.SIGKILL)
    assert content(pair.output) == expected


@pytest.mark.parametrize("number", POLITE)
def test_a_second_interrupt_does_not_stop_the_tidying(pair: Pair, number: int) -> None:
    """People press Ctrl-C twice: what was written is removed all the same."""
    with stopped("first shard and tidying", *pair) as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        code, _ = end(process)
    assert code == EXIT_CODES[signal.Signals(number)]
    assert names(pair.output.parent) == ["helper", "source"]


# --- what a killed run leaves


def test_the_next_run_removes_what_a_killed_one_left(
    pair: Pair, expected: dict[str, bytes | str]
) -> None:
    """Even if several were killed, and whether the next one overwrites or not."""
    for place in ("first shard", "whole, verified"):
        with stopped(place, *pair) as process:
            end(process, signal.SIGKILL)
    assert run(*pair) == (0, "")
    assert content(pair.output) == expected
    assert names(pair.output.parent) == ["helper", "source", "target"]

    with stopped("first shard", *pair, "--overwrite") as process:
        end(process, signal.SIGKILL)
    assert run(*pair, "--overwrite") == (0, "")
    assert content(pair.output) == expected
    assert names(pair.output.parent) == ["helper", "source", "target"]


def test_the_next_run_removes_an_old_output_that_a_killed_one_had_replaced(pair: Pair) -> None:
    """It was killed after the exchange: what it left is the old output."""
    write_old(pair.output)
    with stopped("in its place", *pair, "--overwrite") as process:
        end(process, signal.SIGKILL)
    assert len(names(pair.output.parent)) == 4
    assert run(*pair, "--overwrite") == (0, "")
    assert names(pair.output.parent) == ["helper", "source", "target"]


def test_a_run_to_another_output_leaves_the_leftover_alone(pair: Pair) -> None:
    """Only what was on its way to the same output is removed."""
    with stopped("first shard", *pair) as process:
        end(process, signal.SIGKILL)
    left = [name for name in names(pair.output.parent) if name.startswith(".")]
    assert len(left) == 1
    assert run(pair.source, pair.helper, pair.output.with_name("other")) == (0, "")
    assert set(left) < set(names(pair.output.parent))


def test_a_hidden_directory_of_the_users_is_no_leftover(pair: Pair) -> None:
    """Nothing is removed that clpstream can't have made, however alike its name."""
    own = pair.output.with_name(".target.clpstream-notes")
    own.mkdir()
    (own / "diary.txt").write_text("mine")
    assert run(*pair) == (0, "")
    assert content(own) == {"diary.txt": b"mine"}


def test_an_output_with_odd_characters_in_its_name_is_tidied_too(pair: Pair) -> None:
    """Characters that mean something in patterns are characters like any other."""
    output = pair.output.with_name("a [b]*? model")
    with stopped("first shard", pair.source, pair.helper, output) as process:
        end(process, signal.SIGKILL)
    assert run(pair.source, pair.helper, output) == (0, "")
    assert names(output.parent) == ["a [b]*? model", "helper", "source"]


# --- two runs at once


def test_a_run_leaves_another_live_run_alone(pair: Pair, expected: dict[str, bytes | str]) -> None:
    """The second finishes; the first then fails cleanly, and the second's output stands."""
    with stopped("first shard", *pair) as first:
        working = [name for name in names(pair.output.parent) if name.startswith(".")]
        before = content(pair.output.parent / working[0])
        assert run(*pair) == (0, "")
        assert content(pair.output) == expected
        assert content(pair.output.parent / working[0]) == before
        code, stderr = end(first)
    assert code == 2
    assert stderr.startswith("clpstream: ")
    assert "target: it exists now, made by another run" in stderr
    assert "--overwrite" in stderr
    assert len(stderr.splitlines()) == 1
    assert content(pair.output) == expected
    assert names(pair.output.parent) == ["helper", "source", "target"]


def test_a_run_that_ends_as_soon_as_its_directory_is_there_leaves_none(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def interrupted(self: Path, *arguments: Any, **more: Any) -> None:
        mkdir(self, *arguments, **more)
        if ".clpstream-" in self.name:
            raise KeyboardInterrupt

    before = sorted(path.name for path in pair.output.parent.iterdir())
    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clpstream.convert(*pair)
    assert sorted(path.name for path in pair.output.parent.iterdir()) == before


def test_two_runs_that_overwrite_end_with_a_whole_output(
    pair: Pair, expected: dict[str, bytes | str]
) -> None:
    """The last one wins, and nothing else is left."""
    write_old(pair.output)
    with stopped("whole, verified", *pair, "--overwrite") as first:
        assert run(*pair, "--overwrite", "--method", "clp") == (0, "")
        assert content(pair.output) != expected
        assert end(first) == (0, "")
    assert content(pair.output) == expected
    assert names(pair.output.parent) == ["helper", "source", "target"]


# --- overwriting


@pytest.mark.parametrize("system", ["exchange", "no exchange"])
def test_overwrite_replaces_a_directory_wholly(
    pair: Pair, expected: dict[str, bytes | str], system: str
) -> None:
    """No file of the old one stays, whether or not the system can exchange directories."""
    write_old(pair.output)
    assert run(*pair, "--overwrite", place=system) == (0, "")
    assert content(pair.output) == expected
    assert names(pair.output.parent) == ["helper", "source", "target"]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["clpstream.json", "notes.txt"],
        ["config.json", "consolidated.safetensors", ".cache/huggingface/CACHEDIR.TAG"],
        ["config.json", "pytorch_model.bin", ".gitattributes"],
        ["config.json", "pytorch_model-00001-of-00002.bin"],
        ["config.json", "model.safetensors.index.json"],
    ],
)
def test_overwrite_replaces_what_is_empty_or_a_model_by_its_names(
    pair: Pair, names: list[str]
) -> None:
    pair.output.mkdir()
    for name in names:
        (pair.output / name).parent.mkdir(parents=True, exist_ok=True)
        (pair.output / name).write_text("old")
    clpstream.convert(*pair, overwrite=True)
    assert b"old" not in content(pair.output).values()


def write_protected(output: Path) -> None:
    """Something older in directories that may not be written to, with a link out of them."""
    write_old(output)
    (output / "notes" / "elsewhere").symlink_to(output.parent / "source")
    (output / "notes").chmod(0o500)
    output.chmod(0o555)


def test_an_old_output_that_may_not_be_written_to_is_replaced_wholly(
    pair: Pair, expected: dict[str, bytes | str]
) -> None:
    """Nothing of it stays beside the new one; what its links lead to keeps its modes."""
    write_protected(pair.output)
    pair.source.chmod(0o555)
    assert run(*pair, "--overwrite", preexec_fn=obey_modes) == (0, "")
    assert content(pair.output) == expected
    assert names(pair.output.parent) == ["helper", "source", "target"]
    assert stat.S_IMODE(pair.source.stat().st_mode) == 0o555


def test_a_leftover_that_may_not_be_written_to_is_removed(pair: Pair) -> None:
    """An old output, of which a run was killed as it was about to remove it."""
    write_protected(pair.output)
    pair.output.rename(pair.output.with_name(".target.clpstream-0123abcd"))
    assert run(*pair, preexec_fn=obey_modes) == (0, "")
    assert names(pair.output.parent) == ["helper", "source", "target"]


@pytest.mark.parametrize("number", POLITE)
def test_stopping_between_two_renames_keeps_the_old_output(pair: Pair, number: int) -> None:
    """Where directories can't be exchanged, the old one is put back."""
    old = write_old(pair.output)
    with stopped("between renames", *pair, "--overwrite") as process:
        end(process, number)
    assert content(pair.output) == old
    assert names(pair.output.parent) == ["helper", "source", "target"]


def test_the_next_run_knows_an_output_that_was_put_aside_when_killed(
    pair: Pair, expected: dict[str, bytes | str]
) -> None:
    """Killed between two renames: the old output is not lost before the new one is whole."""
    old = write_old(pair.output)
    with stopped("between renames", *pair, "--overwrite") as process:
        end(process, signal.SIGKILL)
    with stopped("whole, verified", *pair, "--overwrite") as process:
        assert content(pair.output) == old
        assert end(process) == (0, "")
    assert content(pair.output) == expected
    assert names(pair.output.parent) == ["helper", "source", "target"]


def test_a_failing_run_with_overwrite_keeps_the_old_output(pair: Pair) -> None:
    """NaN is found while writing; what was there stays."""
    old = write_old(pair.output)
    spoil(pair.source / "model-00002-of-00002.safetensors", "lm_head.weight")
    code, stderr = run(*pair, "--overwrite")
    assert code == 2
    assert "NaN" in stderr
    assert content(pair.output) == old
    assert names(pair.output.parent) == ["helper", "source", "target"]


# --- parents


def test_parents_of_the_output_are_made(pair: Pair, expected: dict[str, bytes | str]) -> None:
    """An output may be several directories deep."""
    output = pair.output / "deep" / "model"
    assert run(pair.source, pair.helper, output) == (0, "")
    assert content(output) == expected


def test_a_directory_that_may_not_be_listed_can_get_an_output_two_levels_down(pair: Pair) -> None:
    pair.output.mkdir(mode=0o333)
    output = pair.output / "deep" / "model"
    assert run(pair.source, pair.helper, output, preexec_fn=obey_modes) == (0, "")
    assert (output / "clpstream.json").exists()


def test_parents_that_were_made_are_removed_when_the_run_fails(pair: Pair) -> None:
    """Those that were there before stay."""
    pair.output.mkdir()
    spoil(pair.source / FIRST, "model.embed_tokens.weight")
    code, _ = run(pair.source, pair.helper, pair.output / "very" / "deep" / "model")
    assert code == 2
    assert names(pair.output) == []


@pytest.mark.parametrize("number", POLITE)
def test_parents_that_were_made_are_removed_when_the_run_is_stopped(
    pair: Pair, number: int
) -> None:
    """As if it had never begun."""
    output = pair.output / "deep" / "model"
    with stopped("first shard", pair.source, pair.helper, output) as process:
        end(process, number)
    assert names(pair.output.parent) == ["helper", "source"]


def test_a_dry_run_makes_nothing(pair: Pair) -> None:
    """Neither the output nor its parents."""
    assert run(pair.source, pair.helper, pair.output / "deep" / "model", "--dry-run") == (0, "")
    assert names(pair.output.parent) == ["helper", "source"]


# --- a disk that does not take it


@pytest.mark.parametrize("limit", [1200, 2500, 6000])
def test_a_file_that_may_not_grow_gives_a_clean_error_and_nothing_stays(
    tmp_path: Path, limit: int
) -> None:
    """In copied bytes, new rows, or a small file; the message says where."""
    write_source(tmp_path / "source", shards=2)
    write_helper(tmp_path / "helper")
    shard = (tmp_path / "source" / FIRST).stat().st_size
    (tmp_path / "source" / "LICENSE").write_bytes(b"x" * 9000)
    assert 2500 < shard < 6000, "then the last limit is met by the licence"

    code, stderr = run(
        *(tmp_path / name for name in ("source", "helper", "target")),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert code == 2
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("clpstream: ")
    assert "too large" in stderr
    assert names(tmp_path) == ["helper", "source"]
    assert "target" in stderr


# --- modes, links, inputs


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes_follow_the_umask(pair: Pair, umask: int) -> None:
    """Of the directory, of every file and of directories in it; the inputs' modes don't matter."""
    (pair.helper / "additional_chat_templates").mkdir()
    (pair.helper / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (pair.source / "LICENSE").write_text("free")
    for path in (*pair.source.iterdir(), *pair.helper.iterdir()):
        if path.is_file():
            path.chmod(0o400)
    assert run(*pair, umask=umask) == (0, "")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in pair.output.rglob("*")}
    assert len(modes) > 8
    for path, mode in modes.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path
    assert stat.S_IMODE(pair.output.stat().st_mode) == 0o777 & ~umask


def test_inputs_of_links_give_an_output_of_files(
    tmp_path: Path, pair: Pair, expected: dict[str, bytes | str]
) -> None:
    """As in a Hugging Face cache: snapshots/<revision>/<file> -> ../../blobs/<sha>."""
    cached = []
    for directory in (pair.source, pair.helper):
        cache = tmp_path / f"models--org--{directory.name}"
        snapshot = cache / "snapshots" / directory.name
        snapshot.mkdir(parents=True)
        (cache / "blobs").mkdir()
        for number, path in enumerate(sorted(directory.iterdir())):
            shutil.copyfile(path, cache / "blobs" / f"{number:064x}")
            (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
        cached.append(snapshot)
    assert run(*cached, pair.output) == (0, "")
    assert [path for path in pair.output.rglob("*") if path.is_symlink()] == []
    assert content(pair.output) == expected


def test_an_output_is_never_the_current_directory(pair: Pair, monkeypatch: Any) -> None:
    pair.output.mkdir()
    monkeypatch.chdir(pair.output)
    with pytest.raises(clpstream.OutputError, match="current directory"):
        clpstream.convert(pair.source, pair.helper, pair.output, overwrite=True)


@pytest.mark.parametrize("more", [{}, {"overwrite": True}, {"overwrite": True, "dry_run": True}])
def test_a_mount_point_is_refused_before_anything_is_read(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """As a volume in a container is: a directory can't be renamed to its place."""
    pair.output.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == pair.output)
    with pytest.raises(clpstream.OutputError, match=r"target: it is a mount point.* inside it"):
        clpstream.convert("no source", "no helper", pair.output, **more)
    clpstream.convert(pair.source, pair.helper, pair.output / "model", **more)


def test_another_user_s_output_which_can_t_be_removed_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stay beside the new one, as large as it is."""
    clpstream.convert(pair.source, pair.helper, pair.output)
    access, user = os.access, os.geteuid()
    monkeypatch.setattr(os, "access", lambda path, mode: path != pair.output and access(path, mode))
    clpstream.convert(pair.source, pair.helper, pair.output, overwrite=True)  # it is one's own
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(clpstream.OutputError, match="target: it is another user's"):
        clpstream.convert(pair.source, pair.helper, pair.output, overwrite=True)


def test_a_name_as_long_as_names_can_be_works(pair: Pair, tmp_path: Path) -> None:
    clpstream.convert(pair.source, pair.helper, tmp_path / ("n" * 250))
    assert (tmp_path / ("n" * 250) / "config.json").exists()


def test_a_loop_of_links_is_a_clear_error(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(clpstream.OutputError, match="loop"):
        clpstream.convert(pair.source, pair.helper, tmp_path / "loop" / "target")


def test_an_output_never_replaces_what_the_inputs_link_to(tmp_path: Path, pair: Pair) -> None:
    """--overwrite of the directory with a cache's blobs is refused: they are the input."""
    snapshot = tmp_path / "cache" / "snapshots" / "revision"
    snapshot.mkdir(parents=True)
    shutil.move(pair.source, tmp_path / "cache" / "blobs")
    for path in (tmp_path / "cache" / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    before = content(tmp_path / "cache")
    code, stderr = run(snapshot, pair.helper, tmp_path / "cache" / "blobs", "--overwrite")
    assert content(tmp_path / "cache") == before
    assert code == 2
    assert "blobs" in stderr


def test_inputs_are_never_written_to(pair: Pair) -> None:
    """Bytes, names, modes and times of change are what they were, and read-only is no hindrance."""

    def state() -> dict[Path, tuple[int, int, bytes]]:
        return {
            path: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
            if path.is_file()
            else (path.stat().st_mode, path.stat().st_mtime_ns, b"")
            for directory in (pair.source, pair.helper)
            for path in (directory, *directory.rglob("*"))
        }

    for directory in (pair.source, pair.helper):
        for path in directory.iterdir():
            path.chmod(0o400)
        directory.chmod(0o500)
    before = state()
    assert run(*pair) == (0, "")
    assert run(*pair, "--overwrite", "--method", "clp") == (0, "")
    assert state() == before
    assert read_tensors(pair.output).keys() == read_tensors(pair.source).keys()
