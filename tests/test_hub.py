"""Hub ids, against a local server that speaks the Hub's API, and offline against the cache."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub
from make import (
    SOURCE_WORDS,
    TARGET_WORDS,
    random_rows,
    read_json,
    read_tensors,
    write_checkpoint,
    write_json,
    write_source,
    write_tokenizer,
)

import clpstream

TABLE, SHARD = "transformer.wte.weight", "model-00002-of-00003.safetensors"
SOURCE_SHARDS = [f"model-0000{place}-of-00003.safetensors" for place in (1, 2, 3)]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]
FETCHED_OF_HELPER = sorted(["config.json", *TOKENIZER, "model.safetensors.index.json", SHARD])
FETCHED_OF_SOURCE = sorted(
    [
        *("LICENSE", "config.json", "generation_config.json", "modeling_own.py"),
        *("preprocessor_config.json", *TOKENIZER, "model.safetensors.index.json", *SOURCE_SHARDS),
    ]
)
NEVER_FETCHED = (
    "README.md", "onnx/model.onnx", "original/consolidated.00.pth", "consolidated.safetensors",
    "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.Q4.gguf", "evil/own.py",
    "onnx/config.json",
)  # fmt: skip


class Place:
    """Two models, in directories and on a Hub, and a home for its cache."""

    def __init__(self, root: Path, hub: Hub) -> None:
        self.root, self.hub, self.home = root, hub, root / "home"
        self.source, self.helper, self.output = root / "source", root / "helper", root / "target"
        write_source(self.source, shards=3)
        write_json(self.source / "generation_config.json", {"eos_token_id": 0})
        for name in ("LICENSE", "modeling_own.py", "preprocessor_config.json", *NEVER_FETCHED):
            (self.source / name).parent.mkdir(exist_ok=True)
            (self.source / name).write_text(f"# {name}\n")
        rows = len(write_tokenizer(self.helper, TARGET_WORDS))
        tensors = {"a": np.ones(3, "f4"), TABLE: random_rows(rows, 8, 5), "z": np.ones(2, "f4")}
        write_checkpoint(self.helper, tensors, {"model_type": "gpt2", "vocab_size": rows}, 3)
        self.commit = {
            "org/source": hub.add("org/source", self.source),
            "helper": hub.add("helper", self.helper),  # a name without an organisation
        }

    def run(self, *arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
        """The command line, in a process and an environment of its own."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            env=self.environment(**variables),
            cwd=self.root / "home",
            check=False,
        )

    def convert(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("convert", "org/source", "helper", self.output, *options, **variables)

    def command(self, *arguments: Any) -> list[str]:
        return [sys.executable, "-m", "clpstream", *map(str, arguments)]

    def environment(self, **variables: str) -> dict[str, str]:
        self.home.mkdir(exist_ok=True)
        ours = ("HF_", "TRANSFORMERS_", "HUGGING", "CLPSTREAM_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        kept = {k: v for k, v in kept.items() if "proxy" not in k.lower()}
        return {**kept, "HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.home), **variables}

    def snapshot(self, name: str) -> Path:
        folder = "models--" + name.replace("/", "--")
        return self.home / "hub" / folder / "snapshots" / self.commit[name]

    def cache(self) -> dict[str, tuple[int, int, bytes | str]]:
        """What the cache holds: inode, time of change (of blobs) and content by path."""
        found: dict[str, tuple[int, int, bytes | str]] = {}
        for path in sorted((self.home / "hub").rglob("*")):
            if path.is_symlink() or path.is_file():
                status = path.lstat()
                content = str(path.readlink()) if path.is_symlink() else path.read_bytes()
                changed = status.st_mtime_ns if path.parent.name == "blobs" else 0
                found[str(path)] = (status.st_ino, changed, content)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Hub() as hub:
        yield Place(tmp_path, hub)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place where one conversion has been done, online."""
    with Hub() as hub:
        place = Place(tmp_path_factory.mktemp("fetched"), hub)
        place.first = place.convert("--json")  # type: ignore[attr-defined]
        assert place.first.returncode == 0, place.first.stderr  # type: ignore[attr-defined]
        yield place


def files(directory: Path) -> dict[str, bytes]:
    """Content by name; of the report, what does not tell where the inputs come from."""
    found = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*")}
    report = json.loads(found["clpstream.json"])
    for entry in (report["source"], report["helper"], report["tokenizer"]):
        del entry["name"]
    del report["left_behind"]
    return found | {"clpstream.json": json.dumps(report).encode()}


def local_result(place: Place) -> dict[str, bytes]:
    output = place.root / "local"
    if not output.exists():
        clpstream.convert(place.source, place.helper, output)
    return files(output)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line that has these words."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("clpstream: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


# --- online


def test_only_what_is_needed_is_fetched_and_only_once(fetched):
    assert fetched.hub.files_of("helper") == FETCHED_OF_HELPER
    assert fetched.hub.files_of("org/source") == FETCHED_OF_SOURCE


def test_the_result_is_that_of_the_same_models_in_directories(fetched):
    assert files(fetched.output) == local_result(fetched)


def test_the_report_names_id_and_commit(fetched):
    result = json.loads(fetched.first.stdout)
    for entry in (result, read_json(fetched.output / "clpstream.json")):
        assert entry["source"]["name"] == f"org/source@{fetched.commit['org/source']}"
        assert entry["helper"]["name"] == f"helper@{fetched.commit['helper']}"
    assert (entry["source"]["shards"], entry["source"]["of_shards"]) == (3, 3)
    assert (entry["helper"]["shards"], entry["helper"]["of_shards"]) == (1, 3)
    assert "in 1 of 3 shards" in fetched.first.stderr


def test_the_output_is_regular_files_that_share_nothing_with_the_cache(fetched):
    cached = {status for status, _, _ in fetched.cache().values()}
    for path in fetched.output.iterdir():
        assert path.is_file()
        assert not path.is_symlink()
        assert path.stat().st_ino not in cached
        assert path.stat().st_nlink == 1


def test_what_is_in_the_cache_is_not_fetched_again_nor_changed(fetched):
    before, asked = fetched.cache(), len(fetched.hub.fetched)
    done = fetched.convert("--overwrite", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(fetched.hub.fetched) == asked
    assert fetched.cache() == before


def test_off_a_terminal_fetching_is_told_in_plain_lines(fetched):
    assert f"fetching org/source: {len(FETCHED_OF_SOURCE) - 1} files\n" in fetched.first.stderr
    assert "\r" not in fetched.first.stderr
    assert "%" not in fetched.first.stderr


@pytest.mark.parametrize("options", [(), ("-q",)])
def test_on_a_terminal_there_are_bars_unless_quiet(place, options):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = place.command("convert", "org/source", "helper", place.output, *options)
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, env=place.environment(TERM="xterm")
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:  # how Linux says that nobody writes any more
        os.close(ours)
    assert running.wait() == 0
    assert (SOURCE_SHARDS[1].encode() in shown) == (options == ())
    assert options == () or shown == b""


def test_a_revision_is_a_branch_a_tag_or_a_commit(place):
    older = shutil.copytree(place.source, place.root / "older")
    (older / "consolidated.safetensors").unlink()
    tensors = {name: tensor + 1 for name, tensor in read_tensors(older).items()}
    write_checkpoint(older, tensors, read_json(older / "config.json"), 3)
    model = place.hub.models["org/source"]
    commit = "0123456789" * 4
    model.commits[commit] = older
    model.refs |= {"v1.0": commit, "refs/pr/1": commit}
    names = []
    for revision in ("v1.0", commit, commit):
        done = place.run(
            *("convert", f"org/source@{revision}", "helper", place.output, "--json", "--overwrite")
        )
        names.append(json.loads(done.stdout)["source"]["name"])
        kept = read_tensors(place.output)["norm.weight"]
        assert kept.tolist() == tensors["norm.weight"].tolist()
    assert names == [f"org/source@{commit}"] * 3


def test_the_token_is_sent(place):
    place.hub.models["helper"].token = "hf_secret"
    refused(place.convert("-q"), "helper: no such directory, and no such model", "HF_TOKEN")
    assert place.convert("-q", HF_TOKEN="hf_secret").returncode == 0
    assert place.hub.tokens == {"", "hf_secret"}


def test_a_directory_goes_before_the_hub(place):
    write_source(place.root / "home" / "org" / "source")
    done = place.convert("-q")
    assert done.returncode == 0
    assert place.hub.files_of("org/source") == []
    assert read_json(place.output / "clpstream.json")["source"]["name"] == "source"


def test_a_tokenizer_alone_costs_no_shard(place):
    code = (
        "import sys; from clpstream.hub import local_directory, model_name\n"
        "from clpstream.progress import Progress\n"
        "print(model_name(local_directory('org/source', 'tokenizer', Progress())))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=place.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == f"org/source@{place.commit['org/source']}\n"
    assert place.hub.files_of("org/source") == sorted(["config.json", *TOKENIZER])


def test_evaluating_fetches_the_shards_with_the_input_embeddings_alone(place):
    tensors = read_tensors(place.helper) | {
        "lm_head.weight": random_rows(1 + len(TARGET_WORDS), 8, 6)
    }
    write_checkpoint(place.helper, tensors, read_json(place.helper / "config.json"), 3)
    done = place.run("evaluate", "org/source", "helper", "--method", "mean")
    assert done.returncode == 0, done.stderr
    for model, shard in (("org/source", SOURCE_SHARDS[0]), ("helper", SHARD)):
        fetched = place.hub.files_of(model)
        assert [file for file in fetched if file.startswith("model-")] == [shard]


def test_inspecting_a_model_fetches_headers_of_its_shards_alone(place):
    done = place.run("inspect", "org/source", "--json")
    assert done.returncode == 0, done.stderr
    fetched = place.hub.files_of("org/source")
    shards = [file for file in fetched if "safetensors" in file and "index" not in file]
    assert len(shards) == 3
    assert all(" bytes=0-" in file for file in shards)
    found, local = json.loads(done.stdout), clpstream.inspect(place.source).to_json()
    assert (found.pop("model"), local.pop("model")) == (
        f"org/source@{place.commit['org/source']}",
        "source",
    )
    assert (found.pop("tied"), local.pop("tied")) == (None, False)  # bytes are not looked at
    assert found.pop("bytes") < local.pop("bytes")  # headers are not counted
    assert found == json.loads(json.dumps(local))


def test_inspecting_looks_at_what_is_in_the_cache_and_says_what_is_wrong_with_it(fetched, tmp_path):
    own = own_cache(fetched, tmp_path)
    done = own.run("inspect", "org/source", "--json", **OFFLINE)
    assert json.loads(done.stdout)["tied"] is False  # all is there: bytes are looked at
    shard = (own.snapshot("org/source") / "model-00001-of-00003.safetensors").resolve()
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(own.run("inspect", "org/source", **OFFLINE), "model-00001-of-00003", "truncated")


def test_pytorch_files_are_fetched_only_where_there_is_no_safetensors(place):
    """What they hold is not looked at here."""
    for path in place.source.glob("*.safetensors*"):
        path.unlink()
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for shard in shards:
        (place.source / shard).write_text(f"no real {shard}")
    index = "pytorch_model.bin.index.json"
    write_json(place.source / index, {"weight_map": {"a": shards[0], "b": shards[1]}})
    (place.source / "pytorch_model.bin").rename(place.root / "single")
    refused(place.convert("-q"))
    small = set(FETCHED_OF_SOURCE) - {*SOURCE_SHARDS, "model.safetensors.index.json"}
    assert place.hub.files_of("org/source") == sorted({*small, index, *shards})
    (place.root / "single").rename(place.source / "pytorch_model.bin")
    place.hub.add("org/single", place.source)
    refused(place.run("convert", "org/single", "helper", place.output, "-q"))
    assert place.hub.files_of("org/single") == sorted({*small, "pytorch_model.bin"})


def test_an_index_that_leads_out_of_the_model_is_refused_before_anything_is_fetched(place):
    index = {"weight_map": {TABLE: "../../../evil.safetensors"}}
    write_json(place.helper / "model.safetensors.index.json", index)
    refused(place.convert("-q"), "model.safetensors.index.json", "evil.safetensors")
    assert SHARD not in place.hub.files_of("helper")


def test_a_bad_output_is_refused_before_anything_is_fetched(place):
    place.output.mkdir()
    refused(place.convert(), "it exists")
    assert place.hub.fetched == []


@pytest.mark.parametrize("where", ["snapshots/x", "blobs/x", "blobs", "x", "."])
def test_no_output_goes_into_the_cache_of_an_input(fetched, where):
    before = fetched.cache()
    source, helper = fetched.snapshot("org/source"), fetched.snapshot("helper")
    output = source.parent.parent / where
    with pytest.raises(clpstream.OutputError, match=r"the output (lies inside|would replace)"):
        clpstream.convert(source, helper, output, overwrite=True)
    assert fetched.cache() == before


def test_an_interrupt_ends_fetching_at_once(place):
    place.hub.stalled = frozenset({SOURCE_SHARDS[1]})
    running = subprocess.Popen(
        place.command("convert", "org/source", "helper", place.output),
        stderr=subprocess.PIPE,
        text=True,
        env=place.environment(),
        # a job in a shell's background ignores it, and so would this
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while ("org/source", SOURCE_SHARDS[1]) not in place.hub.fetched:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=10)
    assert running.returncode == 130
    assert stderr.splitlines()[-1].startswith("clpstream: stopped by SIGINT")
    assert not place.output.exists()
    place.hub.stalled = frozenset()
    assert place.convert("-q").returncode == 0  # and goes on where it was


# --- offline

OFFLINE = {"HF_HUB_OFFLINE": "1"}
DOWN = {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize("variables", [OFFLINE, {"TRANSFORMERS_OFFLINE": "1"}, DOWN])
def test_offline_the_cache_is_enough(fetched, variables):
    before, asked = fetched.cache(), len(fetched.hub.fetched)
    done = fetched.convert("--overwrite", "-q", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files(fetched.output) == local_result(fetched)
    assert (fetched.cache(), len(fetched.hub.fetched)) == (before, asked)


def test_a_snapshot_can_be_named_by_its_directory(fetched):
    source, helper = (fetched.snapshot(name) for name in ("org/source", "helper"))
    done = fetched.run("convert", source, helper, fetched.root / "named", "-q", **OFFLINE)
    assert done.returncode == 0
    report = read_json(fetched.root / "named" / "clpstream.json")
    assert report == read_json(fetched.output / "clpstream.json")


def own_cache(fetched: Place, root: Path) -> Place:
    """A copy of the cache to damage, as a version that keeps no lists of files left it."""
    place = object.__new__(Place)
    vars(place).update(vars(fetched), home=root / "home", root=root, output=root / "target")
    shutil.copytree(fetched.home, place.home, symlinks=True)
    for trees in place.home.glob("hub/*/trees"):
        shutil.rmtree(trees)
    return place


def test_offline_a_cache_without_lists_of_files_is_enough(fetched, tmp_path):
    place = own_cache(fetched, tmp_path)
    assert place.convert("-q", **OFFLINE).returncode == 0
    assert files(place.output) == local_result(fetched)


@pytest.mark.parametrize(
    ("name", "file", "variables"),
    [
        ("org/source", "config.json", OFFLINE),
        ("org/source", SHARD, DOWN),
        ("helper", "tokenizer.json", DOWN),
        ("helper", SHARD, OFFLINE),
    ],
)
def test_offline_a_file_that_is_not_in_the_cache_is_named(fetched, tmp_path, name, file, variables):
    place = own_cache(fetched, tmp_path)
    (place.snapshot(name) / file).unlink()
    advice = "unset" if variables == OFFLINE else "can't be reached"
    refused(place.convert(**variables), name, f"{file} is not in the cache", advice)


def test_offline_a_helper_that_was_fetched_is_no_source(fetched):
    """Only one of its shards is there."""
    done = fetched.run("convert", "helper", "org/source", fetched.root / "other", "-q", **OFFLINE)
    refused(done, "helper", "model-00001-of-00003.safetensors is not in the cache")


@pytest.mark.parametrize("variables", [OFFLINE, DOWN])
def test_offline_a_model_that_is_not_in_the_cache_is_a_clear_error(place, variables):
    advice = "unset" if variables == OFFLINE else "http://127.0.0.1:9"
    refused(place.convert(**variables), "org/source: no such directory", "cache", advice)


# --- mistakes


def test_a_model_that_does_not_exist(place):
    done = place.run("convert", "models/sorce", "helper", place.output)
    refused(done, "models/sorce: no such directory, and no such model on the Hub", "check the name")


def test_a_revision_that_does_not_exist(place):
    done = place.run("convert", "org/source@v9", "helper", place.output)
    refused(done, "org/source@v9: ", "no such revision", "after the @")


def test_a_gated_model(place):
    place.hub.models["org/source"].gated = True
    address = f"{place.hub.endpoint}/org/source"
    refused(place.convert("-q"), "org/source: ", "accept", address, "HF_TOKEN")


def test_a_hub_that_is_out_of_order(place):
    place.hub.status = 503
    refused(place.convert(), "org/source: ", "503", "check the connection")


def test_an_endpoint_that_is_no_address(place):
    done = place.convert("-q", HF_ENDPOINT="nonsense")
    refused(done, "org/source: ", "nonsense", "check HF_ENDPOINT, HF_TOKEN and HF_HOME")


@pytest.mark.parametrize(
    "text",
    [
        "./source",
        "/no/where",
        "a/b/c",
        "org//name",
        "org/name/",
        "org/name@",
        "a/b@../c",
        "a--b/c",
        "",
    ],
)
def test_what_is_neither_a_directory_nor_an_id(tmp_path, text):
    says = f"{re.escape(text)}: no such directory, and not the id .*, or ORG/NAME or ORG/NAME@REV"
    with pytest.raises(clpstream.CheckpointError, match=says):
        clpstream.convert(text, tmp_path, tmp_path / "target")


def test_the_command_line_hands_over_what_was_typed(place):
    done = place.run("convert", "org//source", "helper", place.output)
    refused(done, "org//source: no such directory, and not the id of a model")


# --- directories


def test_a_path_is_never_an_id(tmp_path):
    with pytest.raises(clpstream.CheckpointError, match="org/name: no such directory; give the"):
        clpstream.convert(Path("org/name"), tmp_path, tmp_path / "target")


def test_a_conversion_of_directories_does_not_import_huggingface_hub(pair):
    code = (
        "import clpstream, sys; clpstream.convert(*sys.argv[1:])\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, pair)], check=True)


def test_of_a_helper_only_the_shard_with_its_input_embeddings_need_be_there(pair):
    rows = len(write_tokenizer(pair.helper, SOURCE_WORDS))
    tensors = {"a": np.ones(3, "f4"), TABLE: random_rows(rows, 8, 5), "z": np.ones(2, "f4")}
    (pair.helper / "model.safetensors").unlink()
    write_checkpoint(pair.helper, tensors, {"model_type": "gpt2"}, 3)
    whole = clpstream.convert(*pair).report
    (pair.helper / "model-00001-of-00003.safetensors").unlink()
    (pair.helper / "model-00003-of-00003.safetensors").write_bytes(b"damaged")
    assert clpstream.convert(*pair, overwrite=True).report == whole
    (pair.helper / SHARD).unlink()
    with pytest.raises(clpstream.CheckpointError, match="download the missing shard"):
        clpstream.convert(*pair, overwrite=True)
