"""The command line: what it prints where, its exit codes, its options and variables."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import get_args

import click
import pytest
from click.testing import CliRunner
from make import (
    TARGET_WORDS,
    read_json,
    read_tensors,
    write_checkpoint,
    write_helper,
    write_source,
)

import clpstream
from clpstream import plan
from clpstream.cli import cli
from clpstream.terminal import size
from clpstream.transfer import METHODS
from clpstream.transfer.knn import WeightRule
from clpstream.vocabulary import Match


def run(*arguments, **variables):
    """The console script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "clpstream", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )


def test_convert_prints_what_it_did_on_stdout_and_progress_on_stderr(pair):
    done = run("convert", *pair)
    assert done.returncode == 0
    for word in ("shared", "missing", "rewrites", "examples", "wrote", "peak memory"):
        assert word in done.stdout
    assert f"of {1 + len(TARGET_WORDS)} target tokens" in done.stdout
    assert "writing: done" in done.stderr
    assert (pair.output / "model-00001-of-00002.safetensors").exists()


def test_what_has_nothing_to_do_is_no_progress(pair):
    """Of a helper that has no token which the source lacks, say."""
    for helper, shown in ((pair.helper, True), (pair.source, False)):
        done = run("convert", pair.source, helper, pair.output, "--method", "knn", "--overwrite")
        assert ("knn: tokens" in done.stderr) == shown
        assert "writing: done" in done.stderr


def test_json_is_one_object_on_stdout_and_all_else_on_stderr(pair):
    done = run("convert", *pair, "--json")
    result = json.loads(done.stdout)
    assert "wrote" in done.stderr
    assert result["output"] == str(pair.output)
    assert result["counts"] == read_json(pair.output / "clpstream.json")["counts"]
    assert result["seconds"] > 0
    assert result["peak_memory"] > 10_000_000


def test_quiet_prints_nothing(pair):
    done = run("convert", *pair, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_warnings_are_printed(tmp_path):
    write_source(tmp_path / "source", special={"bos": "<s>", "pad": "[P]"})
    write_helper(tmp_path / "helper", special={"bos": "<s>"})
    config = read_json(tmp_path / "source" / "config.json") | {"pad_token_id": 1}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    done = run("convert", tmp_path / "source", tmp_path / "helper", tmp_path / "target")
    assert "warning" in done.stdout
    assert "pad_token_id" in done.stdout


def test_a_dry_run_says_what_it_needs(pair):
    done = run("convert", *pair, "--dry-run")
    assert done.returncode == 0
    assert "would write" in done.stdout
    assert "peak memory would be" in done.stdout
    assert not pair.output.exists()


def on_a_terminal(shape, kind, *arguments):
    """What a command says on a terminal of (rows, columns)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *shape, 0, 0))
    command = [sys.executable, "-m", "clpstream", *map(str, arguments)]
    variables = {**os.environ, "TERM": kind}
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=variables)
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
        while part := os.read(ours, 1 << 16):
            shown += part.decode()
    os.close(ours)
    assert running.wait() == 0
    return shown


@pytest.mark.parametrize("shape", [(24, 100), (0, 0)])
def test_on_a_terminal_there_are_bars(pair, shape):
    """Also on one that doesn't know how large it is."""
    shown = on_a_terminal(shape, "xterm", "convert", *pair)
    assert "writing: 100%" in shown
    assert "B/s" in shown


def test_on_a_terminal_that_can_not_move_its_cursor_there_are_plain_lines(pair):
    shown = on_a_terminal((24, 100), "dumb", "convert", *pair)
    assert "writing: done" in shown
    assert "%" not in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("command", ["convert", "demo", "score"])
def test_every_option_is_an_environment_variable(command):
    options = [p for p in cli.commands[command].params if isinstance(p, click.Option)]
    assert len(options) >= 9
    for option in options:
        long = max(option.opts, key=len)
        assert option.envvar == "CLPSTREAM_" + long.strip("-").replace("-", "_").upper()


def test_environment_variables_are_obeyed_and_options_go_before_them(pair):
    variables = {"CLPSTREAM_METHOD": "clp", "CLPSTREAM_QUIET": "1", "CLPSTREAM_NEIGHBORS": "3"}
    assert run("convert", *pair, **variables).stdout == ""
    assert read_json(pair.output / "clpstream.json")["options"]["method"] == "clp"
    run("convert", *pair, "--method", "knn", "--overwrite", **variables)
    options = read_json(pair.output / "clpstream.json")["options"]
    assert (options["method"], options["neighbors"]) == ("knn", 3)


def test_every_choice_of_the_library_is_one_of_the_command_line():
    choices = {p.name: getattr(p.type, "choices", None) for p in cli.commands["convert"].params}
    assert set(choices["method"]) == {*METHODS, "auto"}
    assert set(choices["weights"]) == set(get_args(WeightRule))
    assert set(choices["match"]) == set(get_args(Match))


def test_how_many_rows_a_target_may_be_padded_to_is_what_the_library_says(pair):
    done = run("convert", *pair, "--pad-to-multiple-of", plan._MOST_PADDING + 1)
    assert done.returncode == 2
    assert f"is not in the range 1<=x<={plan._MOST_PADDING}" in done.stderr
    assert run("convert", *pair, "--pad-to-multiple-of", plan._MOST_PADDING).returncode == 0


def test_options_reach_the_method(pair):
    options = ["--method", "knn", "--neighbors", "4", "--weights", "sparsemax", "--no-center"]
    options += ["--match", "exact", "--shared", "copy"]
    assert run("convert", *pair, *options).returncode == 0
    assert read_json(pair.output / "clpstream.json")["options"] == {
        "method": "knn",
        "neighbors": 4,
        "weights": "sparsemax",
        "center": False,
        "match": "exact",
        "shared": "copy",
        "map_tokens": {},
        "pieces": "mean",
        "pad_to_multiple_of": 1,
        "vocab_tensors": [],
        "pass_through": [],
    }


def test_a_reader_who_has_seen_enough_is_no_failure(pair):
    """As in `clpstream convert ... | head -1`."""
    command = [sys.executable, "-m", "clpstream", "convert", *map(str, pair)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, "Error" in done.stderr) == (0, False)
    assert (pair.output / "config.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("lost", ["reader", "room"])
def test_nobody_has_to_read_how_far_it_is(pair, lost):
    """As in `clpstream convert ... 2>&1 >/dev/null | head -1`, or 2> a file on a full disk."""
    command = [sys.executable, "-m", "clpstream", "convert", *map(str, pair)]
    read, write = os.pipe() if lost == "reader" else (0, os.open("/dev/full", os.O_WRONLY))
    if lost == "reader":
        os.close(read)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=write, text=True, check=False)
    assert done.returncode == 0
    assert "wrote" in done.stdout
    failed = subprocess.run([*command, "--neighbors", "0"], stderr=write, check=False)
    os.close(write)
    assert failed.returncode == 2


def test_without_a_command_there_is_help():
    done, asked = run(), run("--help")
    assert (done.returncode, done.stdout) == (0, asked.stdout)
    assert "  convert " in done.stdout


def test_peak_memory_is_that_of_the_run_and_not_of_who_started_it(tmp_path):
    code = (
        "import subprocess, sys; held = bytearray(600 << 20)\n"
        "command = [sys.executable, '-m', 'clpstream', 'demo', sys.argv[1], '-q', '--json']\n"
        "print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["peak_memory"] < 500 << 20


def test_without_a_stderr_it_works_in_silence(pair):
    code = "import os, sys; os.close(2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", code, "-m", "clpstream", "convert", *map(str, pair)]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_an_ignored_signal_stays_ignored(pair):
    """As nohup has it."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from clpstream import cli, conversion\n"
        "verify = conversion.verify\n"
        "def stop(*a): os.kill(os.getpid(), signal.SIGHUP); return verify(*a)\n"
        "conversion.verify = stop\n"
        "sys.argv = ['clpstream', 'convert', '-q', *sys.argv[1:]]; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, pair)], check=False)
    assert done.returncode == 0
    assert pair.output.exists()


def test_an_error_is_one_line_whatever_the_names(pair):
    tensors = read_tensors(pair.source)
    tensors["a\nb\x1b[31m"] = tensors["lm_head.weight"]
    write_checkpoint(pair.source / "x", tensors)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pair.source / file, pair.source / "x" / file)
    done = run("convert", pair.source / "x", pair.helper, pair.output)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "a\\nb\\x1b[31m" in done.stderr


@pytest.mark.parametrize("weights", ["softmax", "similarity"])
def test_the_bytes_of_knn_do_not_depend_on_the_number_of_threads(tmp_path, weights):
    outputs, options = [], ["--method", "knn", "--weights", weights]
    for count in ("1", "2", "3"):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        assert run("demo", tmp_path / count, "-q", *options, **threads).returncode == 0
        outputs.append({p.name: p.read_bytes() for p in (tmp_path / count).iterdir()})
    assert outputs[0] == outputs[1] == outputs[2]


def test_version_and_help():
    assert run("--version").stdout.strip() == f"clpstream, version {clpstream.__version__}"
    for arguments in (["-h"], ["convert", "-h"], ["demo", "--help"]):
        assert run(*arguments).stdout.startswith("Usage: ")


def test_importing_the_package_imports_nothing_heavy():
    code = "import clpstream, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"numpy", "faiss", "torch", "transformers", "tokenizers", "click", "ml_dtypes"}
    assert not heavy & set(loaded.stdout.split())


def test_a_conversion_never_imports_torch_or_transformers(pair):
    code = (
        "import clpstream, sys; clpstream.convert(*sys.argv[1:])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, pair)], check=True)


def test_every_public_name_exists():
    for name in clpstream.__all__:
        assert getattr(clpstream, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        clpstream.no_such_name  # noqa: B018


def test_demo_shows_what_happened_to_its_tokens(tmp_path):
    done = run("demo", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    special, examples = done.stdout.split("\nexamples ")
    assert "</s>  (eos) <- row of <|endoftext|>" in special
    assert examples.count("<-") == 13  # a dozen and their heading
    assert "wrote" in done.stdout
    assert "target:" in done.stdout
    assert (tmp_path / "out" / "config.json").exists()


def test_a_demo_replaces_an_earlier_demo_and_nothing_else(tmp_path):
    assert run("demo", tmp_path / "out", "-q").returncode == 0
    assert run("demo", tmp_path / "out", "-q", "--method", "clp").returncode == 0
    assert read_json(tmp_path / "out" / "clpstream.json")["options"]["method"] == "clp"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    assert run("demo", tmp_path / "mine").returncode == 2
    assert (tmp_path / "mine" / "file").read_text() == "mine"


def test_the_built_in_models_are_small_and_shared_by_two_tokenizer_families():
    from clpstream.demo import HELPER, MODELS, SOURCE

    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 6_000_000
    assert read_json(SOURCE / "tokenizer.json")["decoder"]["type"] == "ByteLevel"
    assert read_json(HELPER / "tokenizer.json")["model"]["byte_fallback"] is True
    assert len(list(SOURCE.glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_949, "999.9 kB")),
        *((999_950, "1.0 MB"), (999_999, "1.0 MB"), (40 << 30, "42.9 GB"), (2e15, "2000.0 TB")),
    ],
)
def test_sizes_are_in_powers_of_1000(count, text):
    assert size(count) == text


def test_click_runs_the_same_command_in_process(pair):
    done = CliRunner().invoke(cli, ["convert", *map(str, pair), "--quiet"])
    assert (done.exit_code, done.output) == (0, "")
