"""Files of torch.save: read as torch reads them, converted like safetensors, and never run."""

from __future__ import annotations

import copyreg
import itertools
import pickle
import pickletools
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make import read_json, read_tensors, write_helper, write_json, write_source
from torch_files import (
    ORDERED_DICT,
    PROTO,
    c_strides,
    legacy_keys,
    legacy_start,
    number,
    numbers,
    ordered_dict,
    storage,
    tensor,
    text,
    write_torch,
    zip_file,
)

import clpstream
from clpstream.checkpoint import TensorRows, VocabularyTensor, c_order_blocks
from clpstream.checkpoint.torch_file import read_torch_file

FORMATS = ("zip", "legacy")


def write(path, form, state, storages=None):
    """A file whose pickled object is `state`; storages: key -> (element bytes, data)."""
    storages = storages or {}
    if form == "zip":
        zip_file(path, PROTO + state + b".", {key: data for key, (_, data) in storages.items()})
        return
    content = legacy_start() + PROTO + state + b"." + legacy_keys(list(storages))
    for size, data in storages.values():
        content += struct.pack("<q", len(data) // size) + data
    path.write_bytes(content)


def floats(form, count, key="0"):
    """A storage of float32 as a pickle names it."""
    return storage("FloatStorage", key, count, b"N" if form == "legacy" else b"")


def value(span):
    """The bytes of a tensor in C order."""
    if span.strides is not None:
        return b"".join(block.tobytes() for block in c_order_blocks(span))
    with span.path.open("rb") as file:
        file.seek(span.offset)
        return file.read(span.length)


def refused(path, *says):
    """Reading fails with one line that names the file."""
    with pytest.raises(clpstream.CheckpointError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in says:
        assert word in message
    return message


# What a file holds


@pytest.mark.parametrize("form", FORMATS)
def test_strided_tensors_are_read_in_c_order(tmp_path, form):
    row = np.arange(60, dtype="<f4")
    views = {
        "plain": (row.reshape(4, 15), 0),
        "transposed": (row.reshape(4, 15).T, 0),
        "sliced": (row.reshape(6, 10)[1:5:2, 3:7], 13),
        "permuted": (row.reshape(3, 4, 5).transpose(2, 0, 1), 0),
        "expanded": (np.broadcast_to(row[7:8], (3, 4)), 7),
        "windows": (np.lib.stride_tricks.sliding_window_view(row, 5), 0),
        "scalar": (row[3].reshape(()), 3),
        "empty": (row[:0].reshape(0, 4), 60),
        "one row": (row[10:20].reshape(1, 10), 10),
    }
    state = {
        name: tensor(floats(form, 60), view.shape, [s // 4 for s in view.strides], offset)
        for name, (view, offset) in views.items()
    }
    write(tmp_path / "x.bin", form, ordered_dict(state), {"0": (4, row.tobytes())})
    shard = read_torch_file(tmp_path / "x.bin")
    spans = {span.name: span for span in shard.tensors}
    assert list(spans) == sorted(views, key=lambda name: (spans[name].offset, name))
    for name, (view, _) in views.items():
        span = spans[name]
        assert (span.dtype, span.shape, span.length) == ("F32", view.shape, view.nbytes)
        assert value(span) == view.tobytes()
        if view.ndim and view.size:
            rows = TensorRows(span)
            ids = np.array([len(view) - 1, 0, len(view) - 1])
            assert np.array_equal(rows[ids], view[ids].reshape(3, -1))
            assert np.array_equal(rows[:], view.reshape(len(view), -1))
            for plane in range(len(view) if view.ndim > 1 else 0):
                columns = VocabularyTensor(span, "output head", "", axis=1).plane(plane)
                assert np.array_equal(columns[:], view[plane].reshape(view.shape[1], -1))
    contiguous = {"plain", "scalar", "empty", "one row"}
    assert {name for name, span in spans.items() if span.strides is None} == contiguous


def test_tensors_come_aligned_and_in_an_order_that_follows_from_the_file(tmp_path):
    arrays = {
        "u8": np.arange(3, dtype="u1"),
        "f4": np.arange(3, dtype="<f4"),
        "f2": np.arange(3, dtype="<f2"),
        "i8": np.arange(3, dtype="<i8"),
    }
    write_torch(tmp_path / "x.bin", arrays)
    shard = read_torch_file(tmp_path / "x.bin")
    assert [span.name for span in shard.tensors] == ["i8", "f4", "f2", "u8"]


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_state_dict_one_level_down_and_what_else_is_there(tmp_path, form, key):
    inner = {"w": tensor(floats(form, 2), [2], [1]), "steps": number(3), "": b"N"}
    outer = b"}(" + text("epoch") + number(7) + text("names") + b"]" + text("size")
    outer += b"ctorch\nSize\n" + numbers([2]) + b"\x85R"
    outer += number(5) + text("key 5") + text(key) + ordered_dict(inner) + b"u"
    write(tmp_path / "x.bin", form, outer, {"0": (4, b"12345678")})
    (span,) = read_torch_file(tmp_path / "x.bin").tensors
    assert (span.name, value(span)) == ("w", b"12345678")


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_on_two_levels_are_not_lost(tmp_path, form):
    """The level with the most is the model's; beside it there may be a step, but no weights."""
    weight = tensor(floats(form, 2), [2], [1])
    more = ordered_dict({"a": weight, "b": weight})
    step = b"}(" + text("step") + weight + text("model") + more + b"u"
    write(tmp_path / "x.bin", form, step, {"0": (4, b"12345678")})
    assert [span.name for span in read_torch_file(tmp_path / "x.bin").tensors] == ["a", "b"]
    blocks = b"}(" + text("w") + weight + text("blocks") + more + b"u"
    write(tmp_path / "y.bin", form, blocks, {"0": (4, b"12345678")})
    refused(tmp_path / "y.bin", "'blocks'", "flat", "state_dict()")
    fewer = b"}(" + text("a") + weight + text("b") + weight
    fewer += text("model") + ordered_dict({"c": weight}) + b"u"
    write(tmp_path / "z.bin", form, fewer, {"0": (4, b"12345678")})
    refused(tmp_path / "z.bin", "'model'", "flat", "state_dict()")


def test_views_of_storages_in_the_legacy_format(tmp_path):
    data = np.arange(12, dtype="<f4")
    view = b"(" + text("view") + number(4) + number(6) + b"t"
    state = {"w": tensor(storage("FloatStorage", "0", 12, view), [2, 2], [2, 1], 1)}
    write(tmp_path / "x.bin", "legacy", ordered_dict(state), {"0": (4, data.tobytes())})
    (span,) = read_torch_file(tmp_path / "x.bin").tensors
    assert value(span) == data[5:9].tobytes()
    outside = {"w": tensor(storage("FloatStorage", "0", 12, view), [2, 2], [2, 1], 3)}
    write(tmp_path / "y.bin", "legacy", ordered_dict(outside), {"0": (4, data.tobytes())})
    refused(tmp_path / "y.bin", "'w'", "storage")


# Conversions


def as_torch(directory, **how):
    """The checkpoint's shards as torch files in their place."""
    for path in directory.glob("*.safetensors"):
        name = "pytorch_" + path.name.replace(".safetensors", ".bin")
        with_tensors = directory / "one"
        with_tensors.mkdir()
        path.rename(with_tensors / path.name)
        write_torch(directory / name, read_tensors(with_tensors), **how)
        shutil.rmtree(with_tensors)
    index = directory / "model.safetensors.index.json"
    if index.exists():
        content = read_json(index)
        content["weight_map"] = {
            name: "pytorch_" + file.replace(".safetensors", ".bin")
            for name, file in content["weight_map"].items()
        }
        write_json(directory / "pytorch_model.bin.index.json", content)
        index.unlink()


@pytest.mark.parametrize("how", [{}, {"legacy": True}, {"transposed": True}], ids=str)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_conversion_is_that_of_the_same_model_in_safetensors(tmp_path, shards, how):
    write_source(tmp_path / "source", shards=shards, dtype="BF16", padding=3)
    write_helper(tmp_path / "helper", padding=2)
    for name in ("source", "helper"):
        shutil.copytree(tmp_path / name, tmp_path / f"torch-{name}")
        as_torch(tmp_path / f"torch-{name}", **how)
    (tmp_path / "torch-source" / "pytorch_extra.bin").write_bytes(b"stale")
    expected = clpstream.convert(*(tmp_path / n for n in ("source", "helper", "expected")))
    found = clpstream.convert(*(tmp_path / n for n in ("torch-source", "torch-helper", "found")))
    files = {path.name for path in (tmp_path / "found").iterdir()}
    assert files == {path.name for path in (tmp_path / "expected").iterdir()}
    left, right = read_tensors(tmp_path / "expected"), read_tensors(tmp_path / "found")
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert (array.dtype, array.shape) == (right[name].dtype, right[name].shape)
        assert array.tobytes() == right[name].tobytes(), name
    for name in sorted(files):
        if name.endswith(".json") and name != "clpstream.json":
            assert read_json(tmp_path / "found" / name) == read_json(tmp_path / "expected" / name)
    assert found.report.tied == expected.report.tied
    assert set(found.report.left_behind) - set(expected.report.left_behind) == {"pytorch_extra.bin"}
    for path in (tmp_path / "found").glob("*.safetensors"):
        data = path.read_bytes()
        assert int.from_bytes(data[:8], "little") % 8 == 0
        assert b'"__metadata__":{"format":"pt"}' in data


def test_fingerprints_tell_torch_checkpoints_apart(tmp_path):
    write_source(tmp_path / "source")
    as_torch(tmp_path / "source")
    before = clpstream.checkpoint.fingerprint(clpstream.open_checkpoint(tmp_path / "source"))
    path = tmp_path / "source" / "pytorch_model.bin"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"norm.weight", b"Norm.weight"))
    after = clpstream.checkpoint.fingerprint(clpstream.open_checkpoint(tmp_path / "source"))
    path.write_bytes(content)
    again = clpstream.checkpoint.fingerprint(clpstream.open_checkpoint(tmp_path / "source"))
    assert before == again != after


def test_safetensors_go_first_where_both_are_there(tmp_path):
    write_source(tmp_path / "source")
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"not looked at")
    (shard,) = clpstream.open_checkpoint(tmp_path / "source").shards
    assert shard.path.name == "model.safetensors"


def test_two_shards_that_would_get_one_name(tmp_path):
    write_source(tmp_path / "source", shards=2)
    write_helper(tmp_path / "helper")
    as_torch(tmp_path / "source")
    index = tmp_path / "source" / "pytorch_model.bin.index.json"
    names = ["pytorch_model-00002-of-00002", "model-00001-of-00002"]
    (tmp_path / "source" / f"{names[0]}.bin").rename(tmp_path / "source" / f"{names[1]}.bin")
    index.write_text(index.read_text().replace(*names))
    with pytest.raises(clpstream.CheckpointError, match=r"same name.*model-00001"):
        clpstream.convert(*(tmp_path / name for name in ("source", "helper", "target")))


@pytest.mark.parametrize("name", ["../pytorch_model.bin", "model.safetensors", "/etc/passwd.bin"])
def test_an_index_that_names_other_files(tmp_path, name):
    write_source(tmp_path / "source", shards=2)
    as_torch(tmp_path / "source")
    index = tmp_path / "source" / "pytorch_model.bin.index.json"
    content = read_json(index)
    content["weight_map"]["norm.weight"] = name
    write_json(index, content)
    with pytest.raises(clpstream.CheckpointError, match=r"bin\.index\.json.*belongs to its shards"):
        clpstream.open_checkpoint(tmp_path / "source")


# Memory and time


def write_sparse(path, shape, strides):
    """A legacy file of one bfloat16 tensor, whose data is a hole."""
    count = int(np.prod(shape))
    where = storage("BFloat16Storage", "0", count, b"N")
    start = legacy_start() + PROTO + ordered_dict({"w": tensor(where, shape, strides)}) + b"."
    start += legacy_keys(["0"]) + struct.pack("<q", count)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + 2 * count)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's /proc/self/io")
def test_opening_reads_the_pickle_only(tmp_path):
    write_sparse(tmp_path / "x.bin", (1 << 20, 20 << 10), (20 << 10, 1))
    code = (
        "import sys, pathlib; from clpstream.checkpoint.torch_file import read_torch_file as read\n"
        "def count(): return int(open('/proc/self/io').read().split()[1])\n"
        "path = pathlib.Path(sys.argv[1]); read(path); before = count()\n"
        "span, = read(path).tensors; print(count() - before, span.length)"
    )
    command = [sys.executable, "-c", code, tmp_path / "x.bin"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, length = map(int, done.stdout.split())
    assert (length, count < 64 << 10) == (40 << 30, True)


@pytest.mark.parametrize("shape", [(4000, 10000), (1, 10000, 4000)])
def test_strided_tensors_are_read_in_bounded_memory(tmp_path, shape):
    strides = (*c_strides(shape)[:-2], 1, shape[-2])
    write_sparse(tmp_path / "x.bin", shape, strides)
    (span,) = read_torch_file(tmp_path / "x.bin").tensors
    tracemalloc.start()
    total = sum(block.nbytes for block in c_order_blocks(span))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == span.length == 80_000_000
    assert peak < 48 << 20


# Files that can't be used


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ([9], [1], 0),
        ([8], [1], 1),
        ([2, 2], [7, 1], 0),
        ([2], [2**62], 0),
        ([2**62, 2**62], [0, 0], 0),
        ([2**40], [0], 0),
        ([2**64], [0], 0),
        ([-1], [1], 0),
        ([-2, -2], [1, 1], 0),
        ([2], [-1], 4),
        ([2], [1], -1),
        ([2, 2], [1], 0),
        ([1] * 33, [1] * 33, 0),
        ([1] * 50_000, [1] * 50_000, 0),
    ],
)
def test_tensors_that_leave_their_storage(tmp_path, form, shape, strides, offset):
    state = ordered_dict({"w": tensor(floats(form, 8), shape, strides, offset)})
    write(tmp_path / "x.bin", form, state, {"0": (4, bytes(32))})
    refused(tmp_path / "x.bin", "damaged")


@pytest.mark.parametrize("form", FORMATS)
def test_storages_that_are_not_there_or_too_short(tmp_path, form):
    state = ordered_dict({"w": tensor(floats(form, 8), [2], [1])})
    write(tmp_path / "a.bin", form, state, {"0": (4, bytes(28))})
    refused(tmp_path / "a.bin", "storage 0")
    write(tmp_path / "b.bin", form, state)
    refused(tmp_path / "b.bin", "'w'", "storage 0")
    write(tmp_path / "c.bin", form, state, {"0": (4, bytes(32))})
    content = (tmp_path / "c.bin").read_bytes()
    for length in range(0, len(content) - 1, 3):
        (tmp_path / "c.bin").write_bytes(content[:length])
        refused(tmp_path / "c.bin")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["__metadata__", "half a pair \ud800"])
def test_names_that_safetensors_can_not_have(tmp_path, form, name):
    state = ordered_dict({name: tensor(floats(form, 2), [2], [1])})
    write(tmp_path / "x.bin", form, state, {"0": (4, bytes(8))})
    refused(tmp_path / "x.bin", "safetensors", "name")


@pytest.mark.parametrize("form", FORMATS)
def test_a_view_with_changed_signs_is_not_taken_for_its_storage(tmp_path, form):
    flag = b"}" + text("conj") + b"\x88s"
    where = storage("ComplexFloatStorage", "0", 1, b"N" if form == "legacy" else b"")
    state = ordered_dict({"w": tensor(where, [1], [1], 0, flag)})
    write(tmp_path / "x.bin", form, state, {"0": (8, bytes(8))})
    refused(tmp_path / "x.bin", "'w'", "dense")


@pytest.mark.parametrize("state", [b"]", b"N", text("x"), b"}", b"}" + text("a") + b"Ns"])
@pytest.mark.parametrize("form", FORMATS)
def test_files_without_tensors(tmp_path, form, state):
    write(tmp_path / "x.bin", form, state)
    refused(tmp_path / "x.bin", "no dict of tensors", "state_dict()")


def test_archives_that_torch_does_not_write(tmp_path):
    state = PROTO + ordered_dict({"w": tensor(floats("zip", 2), [2], [1])}) + b"."
    entries = {"a/data.pkl": state, "a/data/0": bytes(8)}

    def archive(name, entries, how=zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / name, "w", how) as file:
            for entry, content in entries.items():
                file.writestr(entry, content)
        return tmp_path / name

    assert read_torch_file(archive("good.bin", entries)).tensors[0].shape == (2,)
    refused(archive("compressed.bin", entries, zipfile.ZIP_DEFLATED), "compressed", "data.pkl")
    refused(archive("big-endian.bin", {**entries, "a/byteorder": b"big"}), "big-endian")
    refused(archive("two.bin", {**entries, "b/data.pkl": state}), "2 data.pkl")
    refused(archive("none.bin", {"model.json": b"{}"}), "0 data.pkl")
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "twice.bin", "w") as file,
    ):
        for entry in (*entries, "a/data/0"):
            file.writestr(entry, entries[entry])
    refused(tmp_path / "twice.bin", "twice")
    content = (tmp_path / "good.bin").read_bytes()
    place = content.index(b"PK\x01\x02")
    locked = content[: place + 8] + b"\x01" + content[place + 9 :]
    (tmp_path / "locked.bin").write_bytes(locked)
    refused(tmp_path / "locked.bin", "encrypted")


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(257) + b"ustar" + bytes(300))
    refused(path, "tar format")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(path, "LFS")
    path.write_bytes(b"")
    refused(path, "not a file of torch.save")
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    refused(path, "not a file of torch.save")
    path.write_bytes(legacy_start(little_endian=False))
    refused(path, "big-endian")
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path, "not a file of torch.save")


# Attacks

COMMAND = "touch SENTINEL"
SHELL = text(COMMAND) + b"\x85"


def global_(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def stack_global(module, name):
    return text(module) + text(name) + b"\x93"


SETSTATE = text("__setstate__")
NAMESPACE = global_("argparse", "Namespace")
ARMED = {
    "GLOBAL and REDUCE": ("os.system", PROTO + global_("os", "system") + SHELL + b"R."),
    "protocol 0": ("os.system", b"cos\nsystem\n(S'" + COMMAND.encode() + b"'\ntR."),
    "STACK_GLOBAL": ("os.system", b"\x80\x04" + stack_global("os", "system") + SHELL + b"R."),
    "INST": ("os.system", b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n."),
    "OBJ": ("os.system", PROTO + b"(" + global_("os", "system") + text(COMMAND) + b"o."),
    "NEWOBJ of a class that it made": (
        "argparse.Namespace",
        PROTO + NAMESPACE + b")\x81}" + SETSTATE + global_("os", "system") + b"sb"
        + text(COMMAND) + b"b.",
    ),
    "NEWOBJ_EX": (
        "argparse.Namespace",
        b"\x80\x04" + NAMESPACE + b")}\x92}" + SETSTATE + global_("os", "system") + b"sb"
        + text(COMMAND) + b"b.",
    ),
    "BUILD of __setstate__ into an allowed object": (
        "os.system",
        PROTO + ORDERED_DICT + b"}" + SETSTATE + global_("os", "system") + b"sb"
        + text(COMMAND) + b"b.",
    ),
    "EXT1": ("extension", PROTO + b"\x82\xf0" + SHELL + b"R."),
    "EXT2": ("extension", PROTO + b"\x83\xf0\x00" + SHELL + b"R."),
    "EXT4": ("extension", PROTO + b"\x84\xf0\x00\x00\x00" + SHELL + b"R."),
    "a name with dots": (
        "shutil.os.system", b"\x80\x04" + stack_global("shutil", "os.system") + SHELL + b"R."
    ),
    "eval": (
        "builtins.eval",
        PROTO + global_("builtins", "eval") + text(f"__import__('os').system('{COMMAND}')")
        + b"\x85R.",
    ),
    "exec": (
        "builtins.exec",
        PROTO + global_("builtins", "exec") + text(f"import os; os.system('{COMMAND}')")
        + b"\x85R.",
    ),
    "a Python 2 name": (
        "__builtin__.eval",
        PROTO + global_("__builtin__", "eval") + text(f"__import__('os').system('{COMMAND}')")
        + b"\x85R.",
    ),
    "functools.partial": (
        "functools.partial",
        PROTO + global_("functools", "partial") + global_("os", "system") + text(COMMAND)
        + b"\x86R)R.",
    ),
    "subprocess": (
        "subprocess.call",
        PROTO + global_("subprocess", "call") + b"](" + text("touch") + text("SENTINEL")
        + b"e\x85R.",
    ),
    "operator.methodcaller": (
        "operator.methodcaller",
        PROTO + global_("operator", "methodcaller") + text("system") + text(COMMAND) + b"\x86R"
        + global_("importlib", "import_module") + text("os") + b"\x85R\x85R.",
    ),
    "copyreg": (
        "copyreg._reconstructor",
        PROTO + global_("copyreg", "_reconstructor") + NAMESPACE + global_("builtins", "object")
        + b"N\x87R}" + SETSTATE + global_("os", "system") + b"sb" + text(COMMAND) + b"b.",
    ),
    "a key of a dict": (
        "os.system", PROTO + b"}" + global_("os", "system") + SHELL + b"RNs."
    ),
    "a value that is popped": (
        "os.system", PROTO + global_("os", "system") + SHELL + b"R0}."
    ),
}  # fmt: skip
"""Pickles that run a command where pickle.loads loads them, and what the refusal has to name."""

REBUILD_TYPE = global_("torch._tensor", "_rebuild_from_type_v2")
UNARMED = {
    "numpy": ("numpy.core.multiarray._reconstruct",
              PROTO + global_("numpy.core.multiarray", "_reconstruct") + b")R."),
    "numpy scalar": ("numpy.core.multiarray.scalar",
                     PROTO + global_("numpy.core.multiarray", "scalar") + b")R."),
    "torch with dots": ("torch.serialization.os.system",
                        b"\x80\x04" + stack_global("torch", "serialization.os.system") + SHELL
                        + b"R."),
    "torch.load": ("torch.serialization.load",
                   PROTO + global_("torch.serialization", "load") + SHELL + b"R."),
    "torch.jit": ("torch.jit._script.unpackage_script_module",
                  PROTO + global_("torch.jit._script", "unpackage_script_module") + b")R."),
    "an allowed module's globals": ("collections.OrderedDict.__init__",
                                    b"\x80\x04"
                                    + stack_global("collections", "OrderedDict.__init__") + b"."),
    "a storage class that is called": ("torch.FloatStorage",
                                       PROTO + global_("torch", "FloatStorage") + SHELL + b"R."),
    "a storage class that is made": ("torch.FloatStorage",
                                     PROTO + global_("torch", "FloatStorage") + b")\x81."),
    "state of a class": ("torch.FloatStorage",
                         PROTO + global_("torch", "FloatStorage") + b"}" + SETSTATE + b"Nsb."),
    "an allowed call of another": ("torch.Size",
                                   PROTO + REBUILD_TYPE + b"(" + global_("torch", "Size")
                                   + global_("torch", "Tensor") + b"))tR."),
    "an allowed call of itself": ("torch._tensor._rebuild_from_type_v2",
                                  PROTO + REBUILD_TYPE + b"(" + REBUILD_TYPE
                                  + global_("torch", "Tensor") + b"))tR."),
    "what is no function": ("str", PROTO + text("os.system") + SHELL + b"R."),
    "state of a list": ("list", PROTO + b"]}b."),
    "a persistent id in text": ("os.system", b"Pos.system\n."),
    "a persistent id of a module": ("outside",
                                    PROTO + b"(" + text("module") + global_("torch", "Tensor")
                                    + b"NNtQ."),
    "a persistent id that is no tuple": ("outside", PROTO + text("os.system") + b"Q."),
    "a name with control characters": (r"os.sys\x1b[2Jtem",
                                       b"\x80\x04" + stack_global("os", "sys\x1b[2Jtem") + b"."),
}  # fmt: skip
"""Pickles that nothing but torch would load, or nothing at all."""


@pytest.fixture
def extensions():
    """os.system in the extension registry, so that EXT opcodes find it."""
    copyreg.add_extension("os", "system", 0xF0)
    yield
    copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("place", ["zip", "legacy", "magic", "keys", "bare", "inside a state dict"])
@pytest.mark.parametrize("attack", [*ARMED, *UNARMED])
def test_no_attack_runs(tmp_path, monkeypatch, extensions, attack, place):
    monkeypatch.chdir(tmp_path)
    names, payload = (ARMED | UNARMED)[attack]
    if attack in ARMED:
        pickle.loads(payload)
        assert Path("SENTINEL").exists()
        Path("SENTINEL").unlink()
    path = tmp_path / "model" / "pytorch_model.bin"
    path.parent.mkdir()
    if place == "zip":
        zip_file(path, payload, {})
    elif place == "legacy":
        path.write_bytes(legacy_start() + payload)
    elif place == "magic":
        path.write_bytes(payload + legacy_start())
    elif place == "keys":
        path.write_bytes(legacy_start() + PROTO + b"}." + payload)
    elif place == "bare":
        path.write_bytes(payload)
    else:
        good = text("w") + tensor(floats("zip", 2), [2], [1])
        bad = text("v") + payload.removeprefix(PROTO).removesuffix(b".")
        zip_file(path, PROTO + b"}(" + good + bad + b"u.", {"0": bytes(8)})
    with pytest.raises(clpstream.CheckpointError) as caught:
        clpstream.open_checkpoint(path.parent)
    message = str(caught.value)
    assert str(path) in message
    assert "malicious" in message
    assert names in message
    assert message.isprintable()
    assert not Path("SENTINEL").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        b"]" + text("a") + b"N\x86a\x85",
        text("x") + b"\x85",
        b"N",
        b"((((tttt",
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        b"ccollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_tensor_v3\n",
        b"ctorch._utils\n_rebuild_parameter\n",
    ],
)
def test_allowed_calls_with_arguments_that_torch_does_not_give(tmp_path, function, arguments):
    zip_file(tmp_path / "x.bin", PROTO + b"}" + text("w") + function + arguments + b"Rs.", {})
    refused(tmp_path / "x.bin", "damaged")


BOMBS = {
    "a long text": b"X\xff\xff\xff\xff",
    "a longer text": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "long bytes": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "a bytearray": b"\x96" + b"\xff" * 7 + b"\x7f",
    "a long number": b"\x8b\xff\xff\xff\x7f",
    "digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "a long name": b"c" + b"x" * 1_000_000,
    "a far place in the memo": b"Nr\xff\xff\xff\xff",
    "a farther place in the memo": b"Np" + b"9" * 4000 + b"\n",
    "marks": b"(" * 50_000,
    "deep lists": b"]" * 50_000 + b"a" * 49_999,
    "deep tuples": b")" + b"\x85" * 50_000,
    "wide tuples as a key": b"}" + b")" + b"2\x86" * 50_000 + b"Ns",
    "a list in itself": b"]q\x00h\x00a" * 1000,
    "a dict in itself": b"}q\x00" + text("state_dict") + b"h\x00s" * 1,
    "wide tuples as state": b"}" + b")" + b"2\x86" * 50_000 + b"b",
    "wide tuples as a size": b"ctorch\nSize\n)" + b"2\x86" * 50_000 + b"\x85R",
    "a call with many arguments": b"ctorch\nSize\n(" + b"N" * 50_000 + b"tR",
    "pop of nothing": b"0",
    "a tuple of nothing": b"\x87",
    "no mark": b"t",
    "an unknown memo": b"h\x07",
    "no stop": b"}",
    "an unknown opcode": b"\xff",
    "a set": b"\x8f(Nk\x90",
    "a buffer": b"\x97",
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(tmp_path, form, bomb):
    end = b"" if bomb == "no stop" else b"."
    content = PROTO + BOMBS[bomb] + end
    if form == "zip":
        zip_file(tmp_path / "x.bin", content, {})
    else:
        (tmp_path / "x.bin").write_bytes(legacy_start() + content)
    begin = time.process_time()
    tracemalloc.start()
    refused(tmp_path / "x.bin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20
    assert time.process_time() - begin < 10


def test_the_steps_of_one_pickle_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(clpstream.checkpoint.pickles, "MAX_STEPS", 10_000)
    (tmp_path / "x.bin").write_bytes(legacy_start() + PROTO + b"N0" * 6_000 + b"}.")
    refused(tmp_path / "x.bin", "too large")


def real_files():
    """The bytes of a good file of each format."""
    arrays = {"a.weight": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones(4, "<f2")}
    contents = []
    for legacy in (False, True):
        path = Path("pytorch_model.bin")
        write_torch(path, arrays, legacy)
        contents.append(path.read_bytes())
        path.unlink()
    return contents


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A place for files that examples of one property write over each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("scratch"))
        yield real_files()


def reads_or_refuses(content):
    path = Path("x.bin")
    path.write_bytes(content)
    try:
        shard = read_torch_file(path)
    except clpstream.CheckpointError as error:
        assert str(error).startswith("x.bin: ")
        return
    for span in shard.tensors:
        assert 0 <= span.offset <= len(content)
        assert len(value(span)) == span.length


@given(junk=st.binary(max_size=300), start=st.sampled_from([b"", legacy_start()]))
@settings(deadline=2000, max_examples=200)
def test_random_bytes_are_refused(scratch, junk, start):
    reads_or_refuses(start + junk)


@given(
    kind=st.sampled_from([0, 1]),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=8)), min_size=1, max_size=4
    ),
)
@settings(deadline=2000, max_examples=400)
def test_mutations_of_a_real_file_are_read_or_refused(scratch, kind, edits):
    content = bytearray(scratch[kind])
    for where, drop, new in edits:
        place = int(where * len(content))
        content[place : place + drop] = new
    reads_or_refuses(bytes(content))


@given(
    opcodes=st.lists(
        st.sampled_from([*(bytes([code]) for code in b"(.012NQ)]}abdehloqrstuR\x81\x85\x86\x87\x88"
                           b"\x89\x91\x92\x93\x94"),
                         number(3), text("storage"), text("w"), ORDERED_DICT, b"q\x01", b"h\x01",
                         floats("zip", 2), tensor(floats("zip", 2), [2], [1]),
                         b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"]),
        max_size=40,
    ),
)  # fmt: skip
@settings(deadline=2000, max_examples=300)
def test_random_opcodes_are_read_or_refused(scratch, opcodes):
    zip_file(Path("y.bin"), PROTO + b"".join(opcodes) + b".", {"0": bytes(8)})
    reads_or_refuses(Path("y.bin").read_bytes())


# Against torch


@pytest.fixture
def torch():
    found = pytest.importorskip("torch", reason="needs the interop extra")
    found.set_num_threads(1)
    return found


def equal_to_torch(torch, path, tensors):
    """Every tensor's bytes, dtype and shape are those of `tensors`, as torch.load gives them."""
    safetensors_torch = pytest.importorskip("safetensors.torch")
    shard = read_torch_file(path)
    assert sorted(span.name for span in shard.tensors) == sorted(tensors)
    for span in shard.tensors:
        expected = tensors[span.name].detach().contiguous()
        assert span.shape == tuple(expected.shape)
        saved = safetensors_torch.save({"x": expected.clone()})
        assert f'"dtype":"{span.dtype}"'.encode() in saved
        raw = torch.frombuffer(bytearray(value(span) + b"\0"), dtype=torch.uint8)[:-1]
        assert torch.equal(raw, expected.reshape(-1).view(torch.uint8)), span.name


@pytest.mark.interop
@pytest.mark.parametrize("form", FORMATS)
def test_what_torch_saves_is_what_torch_loads(tmp_path, torch, form):
    torch.manual_seed(0)
    shared = torch.randn(6, 7)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    tagged = torch.nn.Parameter(torch.randn(3))
    tagged.note = "kept with the parameter"
    state = {
        "shared": shared, "tied": shared, "part": shared[2:5, 1:6:2], "turned": shared.t(),
        "row": shared[3], "scalar": torch.tensor(2.5),
        "expanded": torch.randn(5, 1).expand(2, 5, 3),
        "empty": torch.zeros(0, 3), "no rows": shared[:0], "parameter": torch.nn.Parameter(shared),
        "with attributes": tagged, "buffer": torch.nn.Buffer(torch.randn(2)),
        "large": torch.arange(3_000_000).reshape(1500, 2000).t(),
        **{f"module.{name}": tensor for name, tensor in module.state_dict().items()},
    }  # fmt: skip
    names = ["float64", "float32", "float16", "bfloat16", "complex64", "bool", "uint8", "int8",
             "int16", "int32", "int64", "uint16", "uint32", "uint64", "float8_e4m3fn",
             "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]  # fmt: skip
    for name in names:
        if hasattr(torch, name):
            raw = torch.randint(0, 2, (48,), dtype=torch.uint8)
            state[name] = raw.view(getattr(torch, name))
    path = tmp_path / "x.bin"
    torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    # torch itself can't load what it saves of newer dtypes in the legacy format
    loads = form == "zip"
    equal_to_torch(torch, path, torch.load(path, weights_only=False) if loads else state)


@pytest.mark.interop
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMATS)
def test_state_dicts_of_modules_nested_and_in_every_protocol(tmp_path, torch, form, protocol):
    module = torch.nn.Linear(3, 4)
    nested = {"epoch": 3, "lr": 0.1, "state_dict": module.state_dict(), "size": torch.Size([1, 2]),
              "device": torch.device("cpu"), "dtype": torch.float16}  # fmt: skip
    for place, saved in enumerate((module.state_dict(), nested, {"model": nested["state_dict"]})):
        path = tmp_path / f"{place}.bin"
        new = form == "zip"
        torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        equal_to_torch(torch, path, module.state_dict())


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_safetensors_can_not_hold_are_refused_by_name(tmp_path, torch):
    bad = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.quint8),
        "meta": torch.zeros(3, device="meta"),
        "complex128": torch.zeros(3, dtype=torch.complex128),
        "signs": torch.zeros(3, dtype=torch.complex64).conj(),
    }
    for kind, tensor_ in bad.items():
        path = tmp_path / f"{kind}.bin"
        torch.save({"good": torch.ones(2), "bad.one": tensor_}, path)
        refused(path, "'bad.one'", kind)


@pytest.mark.interop
def test_a_saved_module_is_refused(tmp_path, torch):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.bin")
    refused(tmp_path / "x.bin", "torch.nn.modules.linear.Linear")


@pytest.mark.interop
@pytest.mark.parametrize("form", FORMATS)
def test_a_conversion_of_what_torch_saved(tmp_path, torch, form):
    safetensors_torch = pytest.importorskip("safetensors.torch")
    write_source(tmp_path / "source", dtype="BF16", untied=False)
    write_helper(tmp_path / "helper")
    for name in ("source", "helper"):
        path = tmp_path / name / "model.safetensors"
        state = safetensors_torch.load_file(path)
        if name == "source":
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
            state["layers.0.turned.weight"] = torch.randn(1100, 1300).t()
            state["layers.0.mask"] = torch.ones(1, dtype=torch.bool).expand(1, 1, 7)
        path.unlink()
        saved = tmp_path / name / "pytorch_model.bin"
        torch.save(state, saved, _use_new_zipfile_serialization=form == "zip")
    result = clpstream.convert(*(tmp_path / name for name in ("source", "helper", "target")))
    source = torch.load(tmp_path / "source" / "pytorch_model.bin")
    target = safetensors_torch.load_file(tmp_path / "target" / "model.safetensors")
    rewritten = {"model.embed_tokens.weight", "lm_head.weight"}
    assert result.report.tied
    assert {t.name for t in result.report.vocabulary_tensors} == rewritten
    assert target.keys() == source.keys()
    for name in target.keys() - rewritten:
        assert target[name].dtype == source[name].dtype
        assert torch.equal(target[name], source[name])
    assert torch.equal(*(target[name] for name in rewritten))


def test_the_attacks_have_every_opcode_that_calls():
    opcodes = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4",
               "GLOBAL", "STACK_GLOBAL", "PERSID", "BINPERSID"}  # fmt: skip
    payloads = itertools.chain(ARMED.values(), UNARMED.values())
    used = {op.name for _, payload in payloads for op, _, _ in pickletools.genops(payload)}
    assert opcodes <= used
