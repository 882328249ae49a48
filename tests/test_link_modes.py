"""What becomes of shards that don't change, and of bytes that threads copy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Pair
from make import read_tensors, write_helper, write_json, write_source
from safetensors.numpy import save_file

from clpstream import convert
from clpstream.cli import cli
from clpstream.errors import OutputError, TransferError
from clpstream.output import copying

BODY, TABLE = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Pair:
    """A pair whose source has a shard without a vocabulary tensor."""
    source, helper = tmp_path / "source", tmp_path / "helper"
    write_source(source, "gpt2")
    write_helper(helper)
    table = read_tensors(source)
    for path in source.glob("*.safetensors"):
        path.unlink()
    rng = np.random.default_rng(0)
    body = {f"h.{n}.attn.c_proj.weight": rng.standard_normal((64, 48)) for n in range(9)}
    save_file(body, source / BODY)
    save_file(table, source / TABLE)
    weight_map = dict.fromkeys(body, BODY) | dict.fromkeys(table, TABLE)
    write_json(source / "model.safetensors.index.json", {"weight_map": weight_map})
    return Pair(source, helper, tmp_path / "target")


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_mode_gives_the_same_tensors(sharded, tmp_path):
    source, helper, _ = sharded
    made = []
    for mode in ("auto", "copy", "hardlink"):
        convert(source, helper, tmp_path / mode, link_mode=mode)
        made.append(content(tmp_path / mode))
        del made[-1]["clpstream.json"]  # which tells of hard links
    assert made[0] == made[1] == made[2]


def test_hard_links_take_no_room_and_are_told(sharded, tmp_path):
    source, helper, output = sharded
    before = content(source)
    whole = convert(source, helper, output, dry_run=True)
    result = convert(source, helper, output, link_mode="hardlink")
    assert (output / BODY).samefile(source / BODY)
    assert not (output / TABLE).samefile(source / TABLE)
    saved = whole.bytes_to_write - result.bytes_to_write
    assert saved == (source / BODY).stat().st_size
    assert any("hard links: 1 of 2 shards" in warning for warning in result.report.warnings)
    assert content(source) == before


def test_a_failed_run_with_hard_links_leaves_the_source_whole(sharded, monkeypatch):
    source, helper, output = sharded
    before = content(source)

    def fail(*arguments):
        raise OutputError("full")

    monkeypatch.setattr("clpstream.conversion.verify", fail)
    with pytest.raises(OutputError, match="full"):
        convert(source, helper, output, link_mode="hardlink")
    assert content(source) == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["helper", "source"]


def test_what_a_symbolic_link_leads_to_is_never_linked(sharded, tmp_path):
    """As in the Hub's cache, where other models and tools read the same blob."""
    source, helper, output = sharded
    blob = tmp_path / "blobs" / "1"
    blob.parent.mkdir()
    (source / BODY).rename(blob)
    (source / BODY).symlink_to(blob)
    result = convert(source, helper, output, link_mode="hardlink")
    assert not (output / BODY).samefile(blob)
    assert not (output / BODY).is_symlink()
    assert (output / BODY).read_bytes() == blob.read_bytes()
    assert any("symbolic links" in warning for warning in result.report.warnings)


def test_the_hub_s_cache_is_never_linked_even_where_it_has_no_symbolic_links(sharded, tmp_path):
    source, helper, output = sharded
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    result = convert(snapshot, helper, output, link_mode="hardlink")
    assert not (output / BODY).samefile(snapshot / BODY)
    assert any("Hub's cache" in warning for warning in result.report.warnings)


def test_a_clone_is_used_where_there_is_one(sharded, monkeypatch):
    """No file system of the tests needs to have clones: the call is replaced by one that copies."""
    source, helper, output = sharded
    asked = []

    def clone(old: int, request: int, new: int) -> None:
        asked.append(request)
        os.write(old, os.pread(new, 1 << 20, 0))

    monkeypatch.setattr(copying.fcntl, "ioctl", clone)
    convert(source, helper, output, link_mode="reflink")
    assert asked == [0x40049409]  # FICLONE, see linux/fs.h
    assert (output / BODY).read_bytes() == (source / BODY).read_bytes()


@pytest.mark.parametrize("mode, call", [("reflink", "ioctl"), ("hardlink", "link")])
def test_what_the_file_system_can_not_do_is_an_error(sharded, monkeypatch, mode, call):
    source, helper, output = sharded

    def refuse(*arguments, **named):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(copying.fcntl if call == "ioctl" else os, call, refuse)
    with pytest.raises(OutputError, match=f"{BODY}.*--link-mode"):
        convert(source, helper, output, link_mode=mode)
    assert not output.exists()


def test_a_dry_run_knows_a_file_system_without_clones_and_writes_nothing(sharded, monkeypatch):
    source, helper, output = sharded
    asked = []

    def refuse(file: int, request: int, what: bytes) -> None:
        asked.append((request, what))
        raise OSError(95, "Operation not supported")

    def accept(file: int, request: int, what: bytes) -> bytes:
        return what

    monkeypatch.setattr(copying.fcntl, "ioctl", refuse)
    with pytest.raises(OutputError, match=f"{BODY}: it can't be cloned to .*--link-mode"):
        convert(source, helper, output, link_mode="reflink", dry_run=True)
    assert asked == [(0xC0189436, bytes(24))]  # FIDEDUPERANGE of nothing, see linux/fs.h
    convert(source, helper, output, link_mode="auto", dry_run=True)
    monkeypatch.setattr(copying.fcntl, "ioctl", accept)
    convert(source, helper, output, link_mode="reflink", dry_run=True)
    assert sorted(path.name for path in output.parent.iterdir()) == ["helper", "source"]


def test_a_copy_shares_no_blocks(sharded, monkeypatch):
    """copy_file_range may share them without saying so."""
    source, helper, output = sharded

    def refuse(*arguments, **named):
        raise AssertionError

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(copying.fcntl, "ioctl", refuse)
    convert(source, helper, output, link_mode="copy")
    assert (output / BODY).read_bytes() == (source / BODY).read_bytes()


def test_a_copy_that_fails_in_a_thread_fails_the_run(sharded, monkeypatch):
    source, helper, output = sharded

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    for call in ("copy_file_range", "sendfile", "pwrite"):
        monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match="No space left on device"):
        convert(source, helper, output)
    assert sorted(path.name for path in output.parent.iterdir()) == ["helper", "source"]


def test_memory_that_does_not_suffice_is_refused_before_anything_is_written(pair, tmp_path):
    write_helper(tmp_path / "wide", width=600)
    with pytest.raises(TransferError, match=r"align needs about .* MiB.*--max-memory"):
        convert(pair.source, tmp_path / "wide", pair.output, max_memory=1 << 20)
    assert not pair.output.exists()


@pytest.mark.parametrize("size", ["10M", "512", "many", "-1G", "1T"])
def test_a_size_that_is_none_or_too_little(pair, size):
    arguments = ["convert", *map(str, pair), "--max-memory", size]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert "--max-memory" in result.output
