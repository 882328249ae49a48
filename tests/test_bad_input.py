"""Mistakes: each gives exit code 2 and one clear line, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from conftest import Pair, obey_modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make import (
    DTYPES,
    SOURCE_WORDS,
    TARGET_WORDS,
    random_rows,
    read_json,
    read_tensors,
    write_helper,
    write_json,
    write_source,
    write_tokenizer,
)
from plain import convert
from safetensors import safe_open
from safetensors.numpy import save_file

from clpstream import Clp, ClpstreamError, Knn, OutputError, TransferError
from clpstream.demo import run_demo

FIRST = "source/model-00001-of-00002.safetensors"
SECOND = "source/model-00002-of-00002.safetensors"
INDEX = "source/model.safetensors.index.json"
EMBEDDINGS, HEAD, TABLE = "model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight"
HELPER = "helper/model.safetensors"
Q = 1 + SOURCE_WORDS.index("q")
"""The id, in both vocabularies, of a token that they share; </s> has id 0."""
UND = 1 + TARGET_WORDS.index(" und")
"""The id of a missing token."""

METHODS = {
    "knn": Knn(),
    "knn, one neighbour": Knn(neighbors=1, center=False),
    "knn, sparsemax": Knn(weights="sparsemax"),
    "knn, similarity": Knn(weights="similarity"),
    "clp": Clp(),
}

ADVICE = re.compile(
    r"download|choose|give |check |repair|make room|load it|rename|run '|save |decide with|with --|"
    r"use |try |must |can be |needs|Try '|is an option of|does not belong",
)
"""A message says what to do, or what would be right."""


# --- ways to damage a pair; each returns a function of the directory that holds it

Damage = Callable[[Path], None]


class Mistake(NamedTuple):
    """What is done wrong, what the message must name, and the command line."""

    damage: Damage
    says: tuple[str, ...]
    arguments: tuple[str, ...] = ("source", "helper", "target")


def nothing() -> Damage:
    return lambda place: None


def both(*damages: Damage) -> Damage:
    def apply(place: Path) -> None:
        for damage in damages:
            damage(place)

    return apply


def remove(*names: str) -> Damage:
    def apply(place: Path) -> None:
        for name in names:
            path = place / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def put(name: str, content: str | bytes) -> Damage:
    def apply(place: Path) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return apply


def pointer(name: str) -> Damage:
    return put(name, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def file_instead(name: str) -> Damage:
    return both(remove(name), put(name, "no directory"))


def move(name: str, to: str) -> Damage:
    def apply(place: Path) -> None:
        (place / to).parent.mkdir(parents=True, exist_ok=True)
        (place / name).rename(place / to)

    return apply


def link(name: str, to: str) -> Damage:
    return lambda place: (place / name).symlink_to(to)


def cut(name: str, size: int) -> Damage:
    """Keep `size` bytes, or all but -`size`."""
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:size])


def header(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change a shard's header and keep its data."""

    def apply(place: Path) -> None:
        content = (place / name).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:end])
        change(entries)
        text = json.dumps(entries).encode()
        (place / name).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    return apply


def edit(name: str, change: Callable[[Any], Any]) -> Damage:
    """Change the content of a JSON file in place."""

    def apply(place: Path) -> None:
        content = read_json(place / name)
        change(content)
        write_json(place / name, content)

    return apply


def tensors(name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> Damage:
    """Change the tensors of a shard."""

    def apply(place: Path) -> None:
        with safe_open(place / name, framework="numpy") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        change(found)
        save_file(found, place / name, metadata={"format": "pt"})

    return apply


def spoil(name: str, tensor: str, row: int, value: float) -> Damage:
    """Put NaN or Inf into one row."""

    def change(found: dict[str, np.ndarray]) -> None:
        found[tensor] = found[tensor].copy()
        found[tensor][row, -1] = value

    return tensors(name, change)


def retype(tensor: str, dtype: Any) -> Damage:
    return tensors(FIRST, lambda found: found.update({tensor: found[tensor].astype(dtype)}))


def map_to(file: Any) -> Damage:
    """An index that says of the head that it is in `file`."""
    return edit(INDEX, lambda index: index["weight_map"].update({HEAD: file}))


def offsets(name: str, tensor: str, begin: int, end: int) -> Damage:
    """Move both ends of a tensor's range by so many bytes."""

    def change(entries: dict[str, Any]) -> None:
        old = entries[tensor]["data_offsets"]
        entries[tensor]["data_offsets"] = [old[0] + begin, old[1] + end]

    return header(name, change)


def add_half_a_surrogate(entries: dict[str, Any]) -> None:
    end = max(entry["data_offsets"][1] for name, entry in entries.items() if name[0] != "_")
    entries["\ud800"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


def unexplained(found: dict[str, np.ndarray]) -> None:
    found["model.token_scale"] = random_rows(1 + len(SOURCE_WORDS), 3, 9)


def rows_on_axis_one(found: dict[str, np.ndarray]) -> None:
    found["model.token_scale"] = random_rows(3, 1 + len(SOURCE_WORDS), 9)


def rename_embeddings(found: dict[str, np.ndarray]) -> None:
    found["model.tokens.table"] = found.pop(EMBEDDINGS)


RENAMED = both(
    tensors(FIRST, rename_embeddings),
    edit(INDEX, lambda index: index["weight_map"].pop(EMBEDDINGS)),
    edit(INDEX, lambda index: index["weight_map"].update({"model.tokens.table": Path(FIRST).name})),
)
TO = ("source", "helper", "target")
NAN, INF = float("nan"), float("inf")

MISTAKES: dict[str, Mistake] = {
    # directories
    "no such source": Mistake(remove("source"), ("source", "no such directory")),
    "no such helper": Mistake(remove("helper"), ("helper", "no such directory")),
    "source is a file": Mistake(file_instead("source"), ("source", "not a directory")),
    "helper is a file": Mistake(file_instead("helper"), ("helper", "not a directory")),
    "no safetensors in the source": Mistake(
        remove(FIRST, SECOND, INDEX), ("source", "safetensors")
    ),
    "no safetensors in the helper": Mistake(remove(HELPER), ("helper", "safetensors")),
    "safetensors by the name of a PyTorch file": Mistake(
        move(HELPER, "helper/pytorch_model.bin"),
        ("helper/pytorch_model.bin", "not a file of torch.save"),
    ),
    "PyTorch shards without their index": Mistake(
        move(HELPER, "helper/pytorch_model-00001-of-00002.bin"),
        ("helper", "pytorch_model.bin.index.json"),
    ),
    "a PyTorch file that would run a command": Mistake(
        both(remove(HELPER), put("helper/pytorch_model.bin", b"cos\nsystem\n(S'false'\ntR.")),
        ("helper/pytorch_model.bin", "os.system", "malicious"),
    ),
    "shards without their index": Mistake(remove(INDEX), ("source", "index.json")),
    # Git LFS pointers
    "pointer for model.safetensors": Mistake(pointer(HELPER), (HELPER, "LFS", "git lfs pull")),
    "pointer for a shard": Mistake(pointer(SECOND), (SECOND, "LFS", "git lfs pull")),
    "pointer for the index": Mistake(pointer(INDEX), (INDEX, "LFS", "git lfs pull")),
    "pointer for tokenizer.json": Mistake(
        pointer("helper/tokenizer.json"), ("helper/tokenizer.json", "LFS", "git lfs pull")
    ),
    "pointer for config.json": Mistake(
        pointer("source/config.json"), ("source/config.json", "LFS", "git lfs pull")
    ),
    "pointer for a tokenizer file that is copied": Mistake(
        pointer("helper/tokenizer.model"), ("helper/tokenizer.model", "LFS", "git lfs pull")
    ),
    # shards
    "shard cut by one byte": Mistake(cut(SECOND, -1), (SECOND,)),
    "shard cut in its header": Mistake(cut(FIRST, 30), (FIRST, "download")),
    "empty shard": Mistake(cut(FIRST, 0), (FIRST,)),
    "header too long": Mistake(put(HELPER, b"\xff" * 8 + b"{}"), (HELPER, "limit")),
    "header not JSON": Mistake(put(HELPER, b"\4" + bytes(7) + b"abcd"), (HELPER, "JSON")),
    "offsets that overlap": Mistake(
        offsets(SECOND, "norm.weight", -4, -4), (SECOND, "tensor 'norm.weight'")
    ),
    "offsets that leave a hole": Mistake(
        offsets(FIRST, EMBEDDINGS, 4, 4), (FIRST, f"tensor '{EMBEDDINGS}'")
    ),
    "offsets out of the file": Mistake(
        header(HELPER, lambda h: h[TABLE].update(shape=[35, 8], data_offsets=[0, 35 * 32])),
        (HELPER, f"tensor '{TABLE}'"),
    ),
    "bytes after the last tensor": Mistake(
        lambda place: (place / HELPER).write_bytes((place / HELPER).read_bytes() + b"!"), (HELPER,)
    ),
    "tensor name that is not Unicode": Mistake(header(FIRST, add_half_a_surrogate), (FIRST,)),
    # index
    "index not JSON": Mistake(put(INDEX, "{"), (INDEX, "JSON")),
    "index a list": Mistake(put(INDEX, "[]"), (INDEX,)),
    "index without weight_map": Mistake(put(INDEX, "{}"), (INDEX, "weight_map")),
    "index names a file that is not there": Mistake(remove(SECOND), (INDEX, Path(SECOND).name)),
    "index names a file in the parent": Mistake(
        map_to("../helper/model.safetensors"), (INDEX, "../helper/model.safetensors")
    ),
    "index names an absolute path": Mistake(map_to("/etc/passwd"), (INDEX, "/etc/passwd")),
    "index names a file in a subdirectory": Mistake(
        both(put("source/a/b", ""), map_to("a/b")), (INDEX, "a/b")
    ),
    "index names a directory": Mistake(both(put("source/a/b", ""), map_to("a")), (INDEX, "a")),
    "index names no file but a list": Mistake(map_to([Path(SECOND).name]), (INDEX,)),
    "index names no file but a number": Mistake(map_to(1), (INDEX,)),
    "index with metadata that is no object": Mistake(
        edit(INDEX, lambda index: index.update(metadata="none")), (INDEX, "metadata")
    ),
    "index names a tensor its shard lacks": Mistake(
        map_to(Path(FIRST).name), (INDEX, HEAD, Path(FIRST).name)
    ),
    "tensor in two shards": Mistake(
        tensors(SECOND, lambda found: found.update({EMBEDDINGS: np.ones(1, "f4")})),
        (EMBEDDINGS, Path(FIRST).name, Path(SECOND).name),
    ),
    # tokenizers and config
    "no tokenizer in the source": Mistake(
        remove("source/tokenizer.json"), ("source", "no tokenizer")
    ),
    "no tokenizer in the helper": Mistake(
        remove("helper/tokenizer.json"), ("helper", "no tokenizer")
    ),
    "tokenizer not JSON": Mistake(
        put("helper/tokenizer.json", "<html>"), ("helper/tokenizer.json", "JSON")
    ),
    "tokenizer without a vocabulary": Mistake(
        put("source/tokenizer.json", '{"model": {"type": "BPE"}}'),
        ("source/tokenizer.json", "vocabulary"),
    ),
    "tokenizer of a type that no library knows": Mistake(
        edit("helper/tokenizer.json", lambda t: t["model"].update(type="Foo")),
        ("helper/tokenizer.json", "Foo"),
    ),
    "tokenizer whose added tokens are no list": Mistake(
        edit("helper/tokenizer.json", lambda t: t.update(added_tokens="foo")),
        ("helper/tokenizer.json", "added_tokens"),
    ),
    "token id beyond all reason": Mistake(
        edit("helper/tokenizer.json", lambda t: t["model"]["vocab"].update(far=10**15)),
        ("helper", str(10**15)),
    ),
    "no config.json in the source": Mistake(
        remove("source/config.json"), ("source", "config.json")
    ),
    "config.json not JSON": Mistake(
        put("source/config.json", "{'a': 1}"), ("source/config.json", "JSON")
    ),
    "fewer helper rows than token ids": Mistake(
        tensors(HELPER, lambda found: found.update({TABLE: random_rows(33, 8, 5)})),
        (HELPER, TABLE, "33 rows", "'ung'"),
    ),
    "no overlap": Mistake(
        lambda place: write_tokenizer(place / "helper", ["ж", "щ"], special={}) and None,
        ("source/tokenizer.json", "helper/tokenizer.json", "in common"),
    ),
    # vocabulary tensors
    "embeddings in int8": Mistake(retype(EMBEDDINGS, np.int8), (FIRST, EMBEDDINGS, "I8")),
    "embeddings in float8": Mistake(
        retype(EMBEDDINGS, ml_dtypes.float8_e4m3fn), (FIRST, EMBEDDINGS, "F8_E4M3")
    ),
    "no known input embeddings": Mistake(
        RENAMED, ("source", "input embeddings", "--vocab-tensor", "model.tokens.table")
    ),
    "no known input embeddings in the helper": Mistake(
        tensors(HELPER, lambda found: found.update({"table": found.pop(TABLE)})),
        ("helper", "input embeddings", "table"),
    ),
    "unexplained tensor as long as the vocabulary": Mistake(
        tensors(SECOND, unexplained),
        (SECOND, "--vocab-tensor model.token_scale", "--pass-through model.token_scale"),
    ),
    "unexplained tensor as wide as the vocabulary": Mistake(
        tensors(SECOND, rows_on_axis_one),
        (SECOND, "model.token_scale", "[3, 34]", "--pass-through model.token_scale"),
    ),
    "--vocab-tensor names a tensor that is not there": Mistake(
        nothing(), ("source", "no.such.tensor"), (*TO, "--vocab-tensor", "no.such.tensor")
    ),
    "--pass-through names a tensor that is not there": Mistake(
        nothing(), ("source", "no.such.tensor"), (*TO, "--pass-through", "no.such.tensor")
    ),
    "--vocab-tensor names a tensor of another length": Mistake(
        nothing(), ("norm.weight", "16"), (*TO, "--vocab-tensor", "norm.weight")
    ),
    # output
    "output is a directory": Mistake(put("target/kept", "mine"), ("target", "--overwrite")),
    "output is an empty directory": Mistake(
        lambda place: (place / "target").mkdir(), ("target", "--overwrite")
    ),
    "output is somebody's directory, --overwrite": Mistake(
        put("target/thesis.txt", "mine"), ("target", "no model"), (*TO, "--overwrite")
    ),
    **{
        f"output is {what}, {' '.join(options)}": Mistake(
            both(*(put(f"target/{name}", "mine") for name in names)),
            ("target", *says),
            (*TO, *options),
        )
        for options in (["--overwrite"], ["--overwrite", "--dry-run"])
        for what, names, says in [
            ("a program", ["config.json", "main.py"], ["no model", "config.json, main.py"]),
            ("firmware", ["firmware.bin"], ["no model", "firmware.bin"]),
            ("weights alone", ["model.safetensors"], ["no model", "model.safetensors"]),
            ("a clone", ["config.json", "model.safetensors", ".git/HEAD"], [".git"]),
            ("a worktree", ["config.json", "model.safetensors", ".git"], [".git"]),
            ("a target under Mercurial", ["clpstream.json", ".hg/store/00"], [".hg"]),
        ]
    },
    "output is a file": Mistake(put("target", "mine"), ("target", "not a directory")),
    "output is a file, --overwrite": Mistake(
        put("target", "mine"), ("target", "not a directory"), (*TO, "--overwrite")
    ),
    "output is a link": Mistake(
        both(put("other/kept", "mine"), link("target", "other")), ("target", "exists")
    ),
    "output is a link, --overwrite": Mistake(
        both(put("other/kept", "mine"), link("target", "other")),
        ("target", "exists"),
        (*TO, "--overwrite"),
    ),
    "output is a dangling link": Mistake(link("target", "nowhere"), ("target", "exists")),
    "output without a name": Mistake(nothing(), ("name is empty",), ("source", "helper", "")),
    "output without a name, --overwrite": Mistake(
        nothing(), ("name is empty",), ("source", "helper", "", "--overwrite")
    ),
    "output below a file": Mistake(
        put("file", "mine"), ("file/target",), ("source", "helper", "file/target")
    ),
    **{
        f"output where one may not {what}, {mode:o} {' '.join(options)}": Mistake(
            lambda place, mode=mode: (place / "shared").mkdir(mode),
            ("shared/target", f"no permission to {what} ", "/shared;"),
            ("source", "helper", "shared/target", *options),
        )
        for options in ([], ["--dry-run"])
        for mode, what in [(0o333, "list"), (0o555, "write to"), (0o666, "enter")]
    },
    "output below a dangling link": Mistake(
        link("gone", "nowhere"),
        ("gone/target", "not a directory"),
        ("source", "helper", "gone/target"),
    ),
    "output inside the source": Mistake(
        nothing(), ("source/target", "inside"), ("source", "helper", "source/target")
    ),
    "output inside the helper": Mistake(
        nothing(), ("helper/a/b", "inside"), ("source", "helper", "helper/a/b")
    ),
    "output inside the source by way of a link": Mistake(
        link("alias", "source"), ("alias/target", "inside"), ("source", "helper", "alias/target")
    ),
    "output inside a source that is a link": Mistake(
        link("alias", "source"), ("source/target", "inside"), ("alias", "helper", "source/target")
    ),
    "output is the source": Mistake(
        nothing(), ("source",), ("source", "helper", "source", "--overwrite")
    ),
    "output is the helper": Mistake(
        nothing(), ("helper",), ("source", "helper", "./helper/", "--overwrite")
    ),
    "output holds the source": Mistake(
        move("source", "outer/source"),
        ("outer", "outer/source"),
        ("outer/source", "helper", "outer", "--overwrite"),
    ),
    # options
    "--neighbors 0": Mistake(nothing(), ("--neighbors", "0"), (*TO, "--neighbors", "0")),
    "--temperature 0": Mistake(nothing(), ("--temperature", "0"), (*TO, "--temperature", "0")),
    "--temperature -1": Mistake(nothing(), ("--temperature", "-1"), (*TO, "--temperature", "-1")),
    "--temperature nan": Mistake(
        nothing(), ("temperature", "nan"), (*TO, "--method", "knn", "--temperature", "nan")
    ),
    "--temperature a word": Mistake(
        nothing(), ("--temperature", "hot"), (*TO, "--temperature=hot")
    ),
    "unknown method": Mistake(nothing(), ("--method", "best", "knn"), (*TO, "--method", "best")),
    "unknown option": Mistake(nothing(), ("--neighbours",), (*TO, "--neighbours", "3")),
    "an argument missing": Mistake(nothing(), ("OUTPUT",), ("source", "helper")),
    "--neighbors with --method clp": Mistake(
        nothing(), ("--neighbors", "clp"), (*TO, "--method", "clp", "--neighbors", "3")
    ),
    # rows that are not finite; the message names the token
    **{
        f"{what}, {method}": Mistake(
            spoil(file, tensor, row, value), (file, tensor, token), (*TO, "--method", method)
        )
        for method in ("knn", "clp")
        for what, file, tensor, row, value, token in [
            ("NaN in a shared row of the embeddings", FIRST, EMBEDDINGS, Q, NAN, "'q'"),
            ("Inf in a shared row of the head", SECOND, HEAD, Q, INF, "'q'"),
            ("NaN in a shared row of the helper", HELPER, TABLE, Q, NAN, "'q'"),
            ("Inf in a missing row of the helper", HELPER, TABLE, UND, -INF, "' und'"),
        ]
    },
}


# --- the promise


def snapshot(place: Path) -> dict[str, Any]:
    """All that is in a directory, hidden or not: bytes, links, and when files were changed."""
    return {
        str(path.relative_to(place)): (
            str(path.readlink())
            if path.is_symlink()
            else "directory"
            if path.is_dir()
            else (path.read_bytes(), path.stat().st_mtime_ns)
        )
        for path in place.rglob("*")
    }


class Result(NamedTuple):
    """How a process ended."""

    code: int
    stdout: str
    stderr: str


def environment() -> dict[str, str]:
    """This one, without what would change options or the number of threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLPSTREAM_")}
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def run(place: Path, *arguments: str, **more: str) -> Result:
    """The command line, from the start of Python to its end."""
    result = subprocess.run(
        [sys.executable, "-m", "clpstream", "convert", *arguments],
        cwd=place,
        env=environment() | more,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Result(result.returncode, result.stdout, result.stderr)


SERVER = """
import json, os, sys, traceback
import clpstream.cli, clpstream.conversion

for line in sys.stdin:
    place, arguments, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(place)
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.argv = ["clpstream", "convert", *arguments]
            clpstream.cli.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def run_forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Like `run`, a process for every call, but forked from one that has imported clpstream.

    A hundred starts of Python would take a minute.
    """
    files = tmp_path_factory.mktemp("streams")
    out, err = files / "out", files / "err"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=environment(),
        preexec_fn=obey_modes,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def call(place: Path, *arguments: str) -> Result:
            print(json.dumps([str(place), arguments, str(out), str(err)]), file=server.stdin)
            server.stdin.flush()
            return Result(int(server.stdout.readline()), out.read_text(), err.read_text())

        yield call
        server.stdin.close()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_clear_line_and_leaves_nothing_behind(
    pair: Pair, run_forked: Run, name: str
) -> None:
    """Exit code 2; what, where and what to do, in one line on stderr; not a file touched."""
    mistake = MISTAKES[name]
    place = pair.source.parent
    mistake.damage(place)
    before = snapshot(place)

    code, stdout, stderr = run_forked(place, "--quiet", *mistake.arguments)

    assert snapshot(place) == before
    assert "Traceback" not in stderr
    assert (code, stdout) == (2, ""), stderr
    lines = stderr.splitlines()
    if lines[0].startswith("Usage: "):
        assert lines[-1].startswith("Error: "), lines
    else:
        assert len(lines) == 1, lines
        assert lines[0].startswith("clpstream: ")
    assert [word for word in mistake.says if word not in stderr] == [], stderr
    assert ADVICE.search(stderr) is not None, f"it does not say what to do: {stderr}"


def test_python_m_clpstream_says_the_same(pair: Pair) -> None:
    """The same line and exit code from the start of Python to its end."""
    remove("helper")(pair.source.parent)
    code, stdout, stderr = run(pair.source.parent, *TO)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(r"clpstream: helper: no such directory, .*\n", stderr)


def test_an_environment_variable_out_of_range_is_a_mistake_like_the_option(pair: Pair) -> None:
    """CLPSTREAM_NEIGHBORS=0 is refused, and nothing is written."""
    code, stdout, stderr = run(pair.source.parent, *TO, CLPSTREAM_NEIGHBORS="0")
    assert (code, stdout) == (2, "")
    assert "--neighbors" in stderr
    assert not pair.output.exists()


@pytest.mark.parametrize(
    "write", [lambda name: convert("source", "helper", name), run_demo], ids=["convert", "demo"]
)
def test_an_output_without_a_name_is_not_the_current_directory(write: Callable[..., Any]) -> None:
    """As an unset variable of a shell gives it; in Python, and for a demo, as for convert."""
    with pytest.raises(OutputError, match="name is empty"):
        write("")


def test_messages_come_after_progress_and_never_on_stdout(pair: Pair, run_forked: Run) -> None:
    """Without --quiet, and with --json too, the last line on stderr says what is wrong."""
    spoil(SECOND, HEAD, Q, NAN)(pair.source.parent)
    code, stdout, stderr = run_forked(pair.source.parent, "--json", *TO)
    assert (code, stdout) == (2, "")
    assert len(stderr.splitlines()) > 1
    assert stderr.splitlines()[-1].startswith(f"clpstream: {SECOND}: tensor '{HEAD}'")


@pytest.mark.parametrize("name", ["source/LICENSE", "helper/chat_template.jinja"])
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_side_file_that_may_not_be_read_is_named_as_every_other_file_is(
    pair: Pair, run_forked: Run, name: str, options: list[str]
) -> None:
    put(name, "text")(pair.source.parent)
    (pair.source.parent / name).chmod(0)
    code, stdout, stderr = run_forked(pair.source.parent, "--quiet", *TO, *options)
    assert (code, stdout) == (2, "")
    assert stderr == f"clpstream: {name}: can't be read: Permission denied\n"


# --- the way out that a message offers works


def test_the_pair_of_this_file_converts_when_nothing_is_wrong(pair: Pair) -> None:
    """Else the table above would prove nothing."""
    assert run(pair.source.parent, "--quiet", *TO) == (0, "", "")
    assert pair.output.is_dir()


def test_an_unexplained_tensor_gets_new_rows_with_vocab_tensor(pair: Pair) -> None:
    """--vocab-tensor decides: indexed by token id."""
    tensors(SECOND, unexplained)(pair.source.parent)
    old = read_tensors(pair.source)["model.token_scale"]
    convert(*pair, vocab_tensors=["model.token_scale"])
    new = read_tensors(pair.output)["model.token_scale"]
    assert (new[Q] == old[Q]).all()
    assert not (new[UND] == old[UND]).all()


def test_an_unexplained_tensor_stays_with_pass_through(pair: Pair) -> None:
    """--pass-through decides: not indexed by token id."""
    tensors(SECOND, unexplained)(pair.source.parent)
    old = read_tensors(pair.source)["model.token_scale"]
    convert(*pair, pass_through=["model.token_scale"])
    assert (read_tensors(pair.output)["model.token_scale"] == old).all()


def test_input_embeddings_of_an_unknown_name_can_be_named(pair: Pair) -> None:
    """--vocab-tensor is the way out where no tensor has a known name."""
    RENAMED(pair.source.parent)
    old = read_tensors(pair.source)["model.tokens.table"]
    convert(*pair, vocab_tensors=["model.tokens.table"])
    new = read_tensors(pair.output)["model.tokens.table"]
    assert (new[Q] == old[Q]).all()
    assert not (new[UND] == old[UND]).all()


def test_a_tensor_with_the_vocabulary_on_its_second_axis_is_made_by_columns(pair: Pair) -> None:
    """Named with --vocab-tensor: the same as its transpose with rows."""
    tensors(SECOND, rows_on_axis_one)(pair.source.parent)
    write_helper(pair.helper, [*TARGET_WORDS, " mehr"])
    old = read_tensors(pair.source)["model.token_scale"]
    convert(*pair, vocab_tensors=["model.token_scale"])
    new = read_tensors(pair.output)["model.token_scale"]
    assert new.shape == (3, old.shape[1] + 1)
    assert (new[:, Q] == old[:, Q]).all()
    tensors(SECOND, lambda found: found.update({"model.token_scale": old.T.copy()}))(
        pair.source.parent
    )
    convert(*pair, vocab_tensors=["model.token_scale"], overwrite=True)
    assert np.allclose(new.T, read_tensors(pair.output)["model.token_scale"], atol=1e-6)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_a_dangling_link_is_not_taken_for_a_file_that_is_not_there(pair: Pair, name: str) -> None:
    """As a pruned cache leaves it."""
    (pair.source / name).unlink(missing_ok=True)
    (pair.source / name).symlink_to(pair.source / "gone")
    with pytest.raises(ClpstreamError, match=name):
        convert(*pair)


# --- disk


@pytest.mark.parametrize("dry_run", [False, True])
def test_too_little_room_on_the_disk_is_found_before_anything_is_written(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """The message says how much is needed and how much is free."""
    before = snapshot(pair.source.parent)
    usage = shutil.disk_usage(pair.source)._replace(free=4321)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"target: [\d,]+ bytes are needed and 4,321 are free"):
        convert(*pair, dry_run=dry_run)
    assert snapshot(pair.source.parent) == before


def test_room_for_the_target_is_enough(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for is what is written, with a few kilobytes for the report."""
    needed = convert(*pair, dry_run=True).bytes_to_write
    usage = shutil.disk_usage(pair.source)._replace(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    convert(*pair)
    written = sum(path.stat().st_size for path in pair.output.rglob("*") if path.is_file())
    assert needed - 100 <= written <= needed + 20_000


# --- NaN and Inf, by the Python API

PADDED = 40


def write_padded(place: Path, dtype: str = "F32") -> Pair:
    """Source and helper with rows beyond their tokens."""
    write_source(place / "source", "llama", shards=2, padding=PADDED, dtype=dtype)
    write_helper(place / "helper", padding=PADDED, dtype=dtype)
    return Pair(place / "source", place / "helper", place / "target")


@pytest.mark.parametrize("method", METHODS)
def test_no_copied_row_may_have_nan(pair: Pair, method: str) -> None:
    """Whether a missing token needs it or not; every method, first row and last."""
    words = {word: 1 + SOURCE_WORDS.index(word) for word in SOURCE_WORDS if word in TARGET_WORDS}
    content = (pair.source.parent / SECOND).read_bytes()
    for word, row in [("a", words["a"]), ("z", words["z"]), (" in", words[" in"])]:
        spoil(SECOND, HEAD, row, NAN)(pair.source.parent)
        with pytest.raises(TransferError, match=re.escape(f"'{HEAD}': row {row} (token '{word}')")):
            convert(*pair, method=METHODS[method])
        assert not pair.output.exists()
        (pair.source.parent / SECOND).write_bytes(content)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_and_inf_are_seen_in_every_dtype(tmp_path: Path, dtype: str, value: float) -> None:
    """In the source and in the helper, which name their own tokens."""
    pair = write_padded(tmp_path, dtype)
    content = (tmp_path / FIRST).read_bytes()
    spoil(FIRST, EMBEDDINGS, Q, value)(tmp_path)
    with pytest.raises(TransferError, match=r"embed_tokens.*\(token 'q'\) has NaN or Inf"):
        convert(*pair)
    (tmp_path / FIRST).write_bytes(content)
    spoil(HELPER, TABLE, UND, value)(tmp_path)
    with pytest.raises(TransferError, match=r"wte.*\(token ' und'\) has NaN or Inf"):
        convert(*pair)
    assert not pair.output.exists()


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_rows_that_nobody_needs_does_not_stop_the_run(tmp_path: Path, method: str) -> None:
    """Source tokens that the target lacks, and padding of source and helper."""
    pair = write_padded(tmp_path)
    for word in set(SOURCE_WORDS) - set(TARGET_WORDS):
        spoil(FIRST, EMBEDDINGS, 1 + SOURCE_WORDS.index(word), NAN)(tmp_path)
        spoil(SECOND, HEAD, 1 + SOURCE_WORDS.index(word), INF)(tmp_path)
    for row in (-1, -PADDED):
        spoil(FIRST, EMBEDDINGS, row, INF)(tmp_path)
        spoil(HELPER, TABLE, row, NAN)(tmp_path)
    convert(*pair, method=METHODS[method])
    made = read_tensors(pair.output)
    assert len(made[EMBEDDINGS]) == len(made[HEAD]) == 1 + len(TARGET_WORDS)
    assert np.isfinite(made[EMBEDDINGS]).all()
    assert np.isfinite(made[HEAD]).all()


# --- JSON of any shape

JSON_FILES = [
    "source/config.json",
    "source/generation_config.json",
    "source/tokenizer.json",
    "source/tokenizer_config.json",
    "helper/special_tokens_map.json",
    "helper/added_tokens.json",
    "helper/config.json",
    "helper/tokenizer.json",
    "helper/tokenizer_config.json",
    INDEX,
]
EXTRA = {
    "source/generation_config.json": {"eos_token_id": [0, 1], "bos_token_id": 0},
    "helper/special_tokens_map.json": {"eos_token": {"content": "</s>"}, "pad_token": "</s>"},
    "helper/added_tokens.json": {"<extra>": 3},
    "helper/tokenizer_config.json": {
        "eos_token": "</s>",
        "added_tokens_decoder": {"0": {"content": "</s>", "special": True}},
    },
}


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value; of long objects only the first few keys."""
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    found = []
    for key in keys[:16]:
        found.append((*path, key))
        if isinstance(content[key], dict | list):
            found += places(content[key], (*path, key))
    return found


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_json_of_any_shape_is_used_or_refused_clearly(pair: Pair, data: st.DataObject) -> None:
    """One value anywhere in any JSON file is something else: a result or a ClpstreamError."""
    place = pair.source.parent
    for name, content in EXTRA.items():
        write_json(place / name, content)
    name = data.draw(st.sampled_from(JSON_FILES))
    original = read_json(place / name)
    content = deepcopy(original)
    *inner, last = data.draw(st.sampled_from(places(content)))
    parent = content
    for key in inner:
        parent = parent[key]
    parent[last] = data.draw(
        st.sampled_from(
            [None, True, -1, 7, 0.5, 10**15, 2**70, "x", [], ["x"], [[0]], {}, {"a": 1}]
        )
    )
    write_json(place / name, content)
    try:
        convert(*pair, dry_run=True)
    except ClpstreamError as error:
        assert "\n" not in str(error)
    finally:
        write_json(place / name, original)
