"""The reader and writer of safetensors headers, held against the safetensors library."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from make import BFLOAT16
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from clpstream.checkpoint.safetensors_file import MAX_HEADER_BYTES, header_bytes, read_shard
from clpstream.errors import CheckpointError

ARRAYS = [
    BFLOAT16,
    *(np.dtype(c) for c in ["?", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8"]),
]
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Written down from the format's own description, not from clpstream."""

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = TEXT.filter(lambda name: name != "__metadata__")
METADATA = st.none() | st.dictionaries(TEXT, TEXT, max_size=3)

ONE_DIRECTORY = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80
)
"""Every example writes the same file of the test's directory anew."""


# --- making files


def entry(dtype: Any, shape: Any, begin: Any, end: Any, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def raw_file(header: Any, data: int = 0, length: int | None = None) -> bytes:
    """A file with any header, `data` bytes of data, and any header length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    stated = len(text) if length is None else length
    return stated.to_bytes(8, "little") + text + bytes(data)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape, dtype = draw(SHAPES), draw(st.sampled_from(ARRAYS))
    size = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.randoms(use_true_random=False)).randbytes(size)
    if dtype.kind == "b":
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, dtype).reshape(shape)


@st.composite
def described(draw: st.DrawFn) -> tuple[str, tuple[int, ...], bytes]:
    """dtype, shape and data of a tensor of any dtype that fills whole bytes."""
    dtype, shape = draw(st.sampled_from(sorted(BITS))), draw(SHAPES)
    bits = BITS[dtype] * int(np.prod(shape))
    assume(bits % 8 == 0)
    return dtype, shape, draw(st.randoms(use_true_random=False)).randbytes(bits // 8)


# --- asking both


def library_refuses(path: Path) -> str | None:
    """Why the library refuses a file; None if it opens it."""
    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except SafetensorError as error:
        return str(error)
    return None


def reader_refuses(path: Path) -> str | None:
    """Why clpstream refuses a file; None if it reads it. Any other exception is a failure."""
    try:
        read_shard(path)
    except CheckpointError as error:
        return str(error)
    return None


def check_refused(path: Path, named: str = "") -> None:
    message = reader_refuses(path)
    assert message is not None, "the library refuses it and the reader does not"
    assert str(path) in message
    assert named in message
    assert "\n" not in message


# --- what the library writes


@ONE_DIRECTORY
@given(tensors=st.dictionaries(NAMES, arrays(), min_size=1, max_size=5), metadata=METADATA)
def test_files_of_the_library_are_read_with_the_right_spans(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    """Name, dtype, shape and place of every tensor: the bytes there are the library's."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(tensors, metadata))
    content = path.read_bytes()

    shard = read_shard(path)

    found = {
        span.name: (
            span.dtype,
            list(span.shape),
            content[span.offset : span.offset + span.length],
        )
        for span in shard.tensors
    }
    library = {n: (t["dtype"], t["shape"], bytes(t["data"])) for n, t in deserialize(content)}
    assert found == library
    assert {name: data for name, (_, _, data) in found.items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }
    assert all(span.path == path for span in shard.tensors)
    assert shard.size == len(content)
    with safe_open(path, framework="numpy") as file:
        assert (shard.metadata or None) == (file.metadata() or None)


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    """Whatever the order of the header, spans follow each other and fill the file."""
    path = tmp_path / "model.safetensors"
    tensors = {
        "b": entry("U8", [3], 2, 5),
        "z": entry("U8", [0], 2, 2),
        "a": entry("U8", [2], 0, 2),
    }
    path.write_bytes(raw_file(tensors, 5))
    shard = read_shard(path)
    assert [span.name for span in shard.tensors] == ["a", "z", "b"]
    assert shard.tensors[0].offset == shard.data_start
    assert shard.tensors[-1].offset + shard.tensors[-1].length == shard.size


# --- what the writer writes

Described = dict[str, tuple[str, tuple[int, ...], bytes]]


def list_sizes(tensors: Described) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Tensors as header_bytes wants them."""
    return [(name, dtype, shape, len(data)) for name, (dtype, shape, data) in tensors.items()]


def write_with_header_bytes(
    path: Path, tensors: Described, metadata: dict[str, str] | None
) -> list[tuple[str, str, tuple[int, ...], int]]:
    """A file with the header under test; what it was given is returned."""
    listed = list_sizes(tensors)
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(header_bytes(listed, metadata) + data)
    return listed


@ONE_DIRECTORY
@given(tensors=st.dictionaries(NAMES, described(), max_size=6), metadata=METADATA)
def test_written_headers_open_in_the_library(
    tmp_path: Path,
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]],
    metadata: dict[str, str] | None,
) -> None:
    """header_bytes and the data after it are a file with just these tensors and this metadata."""
    path = tmp_path / "model.safetensors"
    write_with_header_bytes(path, tensors, metadata)

    assert library_refuses(path) is None
    library = {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in deserialize(path.read_bytes())
    }
    assert library == tensors
    with safe_open(path, framework="numpy") as file:
        assert (file.metadata() or None) == (metadata or None)


@given(tensors=st.dictionaries(NAMES, described(), max_size=6), metadata=METADATA)
def test_data_starts_at_a_multiple_of_eight(
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, str] | None
) -> None:
    """As the library aligns it, so that readers may map tensors without a copy."""
    assert len(header_bytes(list_sizes(tensors), metadata)) % 8 == 0


@ONE_DIRECTORY
@given(tensors=st.dictionaries(NAMES, described(), max_size=6), metadata=METADATA)
def test_what_is_written_is_read_back(
    tmp_path: Path,
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]],
    metadata: dict[str, str] | None,
) -> None:
    """read_shard undoes header_bytes: same tensors in the same order, same metadata."""
    path = tmp_path / "model.safetensors"
    listed = write_with_header_bytes(path, tensors, metadata)
    shard = read_shard(path)
    spans = {s.name: (s.dtype, s.shape, s.length) for s in shard.tensors}
    assert spans == {name: (dtype, shape, size) for name, dtype, shape, size in listed}
    placed = [name for name, _, _, size in listed if size]
    assert [span.name for span in shard.tensors if span.length] == placed
    assert shard.metadata == metadata
    assert shard.data_start == len(header_bytes(listed, metadata))


# --- damaged files: refused where the library refuses

A = entry("F32", [2], 0, 8)
REFUSED: dict[str, tuple[str, bytes]] = {
    # name of the damage: (tensor that the message must name, the file)
    "empty file": ("", b""),
    "seven bytes": ("", b"\2\0\0\0\0\0\0"),
    "no header": ("", raw_file(b"")),
    "header longer than the file": ("", raw_file({"a": A}, 8, length=1000)),
    "header length at the limit, file shorter": ("", raw_file({}, length=MAX_HEADER_BYTES)),
    "header length over 100 MB": ("", raw_file({}, length=100_000_001)),
    "header length of 2**64 - 1": ("", raw_file({}, length=2**64 - 1)),
    "header not JSON": ("", raw_file(b"{'a': 1}")),
    "header cut short": ("", raw_file({"a": A}, 8, length=20)),
    "header not UTF-8": ("", raw_file(b'{"\xff": 1}')),
    "header with a byte order mark": ("", raw_file(b"\xef\xbb\xbf{}")),
    "header with a zero byte at its end": ("", raw_file(b"{}\0")),
    "header nested without end": ("", raw_file(b'{"a":' + b"[" * 200_000)),
    "header a list": ("", raw_file([])),
    "header a number": ("", raw_file(b"7")),
    "header null": ("", raw_file(b"null")),
    "same name for two ranges": (
        "a",
        raw_file(b'{"a":' + json.dumps(A).encode() + b',"a":'
                 + json.dumps(entry("F32", [2], 8, 16)).encode() + b"}", 16),
    ),
    "same key twice in an entry": (
        "", raw_file(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    ),
    "metadata twice": ("", raw_file(b'{"__metadata__":{},"__metadata__":{}}')),
    "metadata a list": ("__metadata__", raw_file({"__metadata__": []})),
    "metadata with a number": ("__metadata__", raw_file({"__metadata__": {"a": 1}})),
    "metadata with null": ("__metadata__", raw_file({"__metadata__": {"a": None}})),
    "metadata nested": ("__metadata__", raw_file({"__metadata__": {"a": {"b": "c"}}})),
    "entry null": ("'a'", raw_file({"a": None})),
    "entry a string": ("'a'", raw_file({"a": "F32"})),
    "entry an empty list": ("'a'", raw_file({"a": []})),
    "no dtype": ("'a'", raw_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8)),
    "no shape": ("'a'", raw_file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8)),
    "no data_offsets": ("'a'", raw_file({"a": {"dtype": "F32", "shape": [2]}}, 8)),
    "dtype a number": ("'a'", raw_file({"a": entry(32, [2], 0, 8)}, 8)),
    "dtype null": ("'a'", raw_file({"a": entry(None, [2], 0, 8)}, 8)),
    "shape a number": ("'a'", raw_file({"a": entry("F32", 2, 0, 8)}, 8)),
    "shape null": ("'a'", raw_file({"a": entry("F32", None, 0, 8)}, 8)),
    "shape of strings": ("'a'", raw_file({"a": entry("F32", ["2"], 0, 8)}, 8)),
    "shape of booleans": ("'a'", raw_file({"a": entry("U8", [True], 0, 1)}, 1)),
    "shape of fractions": ("'a'", raw_file({"a": entry("F32", [2.0], 0, 8)}, 8)),
    "negative shape": ("'a'", raw_file({"a": entry("F32", [-1, -2], 0, 8)}, 8)),
    "offsets of strings": ("'a'", raw_file({"a": entry("F32", [2], "0", "8")}, 8)),
    "offsets of booleans": ("'a'", raw_file({"a": entry("U8", [1], False, True)}, 1)),
    "offsets of fractions": ("'a'", raw_file({"a": entry("F32", [2], 0.0, 8.0)}, 8)),
    "negative offsets": ("'a'", raw_file({"a": entry("F32", [2], -8, 0)}, 8)),
    "huge offsets": ("'a'", raw_file({"a": entry("F32", [2], 2**63, 2**63 + 8)}, 8)),
    "offsets beyond 64 bits": ("'a'", raw_file({"a": entry("F32", [2], 2**64, 2**64 + 8)}, 8)),
    "one offset": ("'a'", raw_file({"a": {**A, "data_offsets": [0]}}, 8)),
    "three offsets": ("'a'", raw_file({"a": {**A, "data_offsets": [0, 8, 8]}}, 8)),
    "offsets in reverse": ("'a'", raw_file({"a": entry("F32", [0], 8, 0)}, 8)),
    "size too small for dtype": ("'a'", raw_file({"a": entry("F32", [2], 0, 4)}, 4)),
    "size too large for dtype": ("'a'", raw_file({"a": entry("F16", [2], 0, 8)}, 8)),
    "size of an empty tensor": ("'a'", raw_file({"a": entry("F32", [2, 0], 0, 4)}, 4)),
    "size of a scalar": ("'a'", raw_file({"a": entry("F32", [], 0, 0)})),
    "shape whose size overflows": ("'a'", raw_file({"a": entry("U8", [2**63, 2], 0, 0)})),
    "shape beyond 64 bits": ("'a'", raw_file({"a": entry("U8", [0, 2**64], 0, 0)})),
    "part of a byte, too short": ("'a'", raw_file({"a": entry("F4", [3], 0, 1)}, 1)),
    "part of a byte, rounded up": ("'a'", raw_file({"a": entry("F4", [3], 0, 2)}, 2)),
    "hole at the start": ("'a'", raw_file({"a": entry("F32", [2], 4, 12)}, 12)),
    "hole between": ("'b'", raw_file({"a": A, "b": entry("U8", [1], 9, 10)}, 10)),
    "hole before an empty tensor": ("'b'", raw_file({"a": A, "b": entry("U8", [0], 9, 9)}, 9)),
    "overlap": ("'b'", raw_file({"a": A, "b": entry("F32", [2], 4, 12)}, 12)),
    "same range twice": ("", raw_file({"a": A, "b": A}, 8)),
    "empty tensor inside another": ("", raw_file({"a": A, "b": entry("U8", [0], 4, 4)}, 8)),
    "out of the file": ("'a'", raw_file({"a": A})),
    "one byte missing": ("'a'", raw_file({"a": A}, 7)),
    "one byte too many": ("", raw_file({"a": A}, 9)),
    "data without a tensor": ("", raw_file({}, 1)),
    "NaN in an entry": (
        "", raw_file({"a": entry("U8", [1], 0, 1, note=float("nan"))}, 1),
    ),
    "half a surrogate pair as a name": ("", raw_file({"\ud800": entry("U8", [1], 0, 1)}, 1)),
    "Git LFS pointer": ("LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
}  # fmt: skip


@pytest.mark.parametrize("damage", REFUSED)
def test_damaged_files_are_refused_like_the_library_does(tmp_path: Path, damage: str) -> None:
    """With an error that names the file and, where there is one, the tensor."""
    named, content = REFUSED[damage]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    assert library_refuses(path) is not None, "the table is wrong"
    check_refused(path, named)


def test_a_name_twice_is_refused_even_where_the_library_takes_the_last(tmp_path: Path) -> None:
    """Two entries for one name can't both be meant."""
    one = b'"a":' + json.dumps(A).encode()
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(raw_file(b"{" + one + b"," + one + b"}", 8))
    check_refused(path, "'a'")


def test_a_long_header_with_a_name_twice_is_refused_at_once(tmp_path: Path) -> None:
    names = [f'"{number}":{{}}' for number in [*range(30_000), 29_999]]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(raw_file(f"{{{','.join(names)}}}".encode()))
    begin = time.process_time()
    check_refused(path, "'29999'")
    assert time.process_time() - begin < 3


ACCEPTED: dict[str, bytes] = {
    "no tensors": raw_file({}),
    "spaces before and after the header": raw_file(b'  \n{ "__metadata__" : {} }   '),
    "null metadata": raw_file({"__metadata__": None}),
    "header order is not the order of the data": raw_file({"b": entry("U8", [1], 8, 9), "a": A}, 9),
    "data that is not aligned": raw_file(
        {"a": entry("U8", [1], 0, 1), "b": entry("F64", [1], 1, 9)}, 9
    ),
    "data that starts anywhere": raw_file(json.dumps({"a": A}).encode() + b" " * 3, 8),
    "more keys in an entry": raw_file({"a": entry("F32", [2], 0, 8, note=[1, {"x": None}])}, 8),
    "empty name": raw_file({"": A}, 8),
    "scalar": raw_file({"a": entry("F32", [], 0, 4)}, 4),
    "empty tensors at one place": raw_file(
        {"b": entry("F32", [0], 8, 8), "a": A, "c": entry("U8", [3, 0], 8, 8)}, 8
    ),
    "half-byte elements": raw_file({"a": entry("F4", [2, 2], 0, 2)}, 2),
    "six-bit elements": raw_file({"a": entry("F6_E2M3", [4], 0, 3)}, 3),
}


@pytest.mark.parametrize("oddity", ACCEPTED)
def test_odd_files_are_read_if_the_library_reads_them(tmp_path: Path, oddity: str) -> None:
    """Nothing that transformers can load is turned away."""
    path = tmp_path / "odd.safetensors"
    path.write_bytes(ACCEPTED[oddity])
    assert library_refuses(path) is None, "the table is wrong"
    assert reader_refuses(path) is None


def test_an_unknown_dtype_passes_with_the_size_of_its_range(tmp_path: Path) -> None:
    """A dtype newer than the table: its bytes can be copied without knowing what they mean."""
    path = tmp_path / "new.safetensors"
    path.write_bytes(raw_file({"a": entry("F3_E1M1", [5], 0, 2), "b": entry("U8", [1], 2, 3)}, 3))
    a, b = read_shard(path).tensors
    assert (a.dtype, a.shape, a.length) == ("F3_E1M1", (5,), 2)
    assert b.offset == a.offset + 2


def test_ranges_of_an_unknown_dtype_are_checked_like_any_other(tmp_path: Path) -> None:
    """Not knowing the dtype is no reason to read past the end."""
    path = tmp_path / "new.safetensors"
    path.write_bytes(raw_file({"a": entry("F3_E1M1", [5], 0, 4)}, 3))
    check_refused(path, "'a'")


# --- damaged at random: the same verdict

JUNK = st.sampled_from(
    [None, True, -1, 0, 1, 8, 1.5, 2**63, 2**64, "x", "F32", "U8", [], [0], [0, 8], [-1, 1], {}]
)


@st.composite
def damaged_headers(draw: st.DrawFn) -> bytes:
    """A sound file of a few tensors, then one to three changes to header or data."""
    header: dict[str, Any] = {}
    end = 0
    for place, (dtype, shape, data) in enumerate(draw(st.lists(described(), max_size=4))):
        header[f"t{place}"] = entry(dtype, list(shape), end, end + len(data))
        end += len(data)
    changes: list[Callable[[], None]] = []

    def replace_part() -> None:
        tensor = header[draw(st.sampled_from(sorted(header)))]
        tensor[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(JUNK)

    def drop_part() -> None:
        tensor = header[draw(st.sampled_from(sorted(header)))]
        tensor.pop(draw(st.sampled_from(["dtype", "shape", "data_offsets"])), None)

    def move_end() -> None:
        offsets = header[draw(st.sampled_from(sorted(header)))].get("data_offsets")
        if isinstance(offsets, list) and len(offsets) == 2:
            offsets[draw(st.integers(0, 1))] += draw(st.integers(-4, 4))

    def change_dtype() -> None:
        header[draw(st.sampled_from(sorted(header)))]["dtype"] = draw(st.sampled_from(sorted(BITS)))

    def change_metadata() -> None:
        header["__metadata__"] = draw(JUNK)

    def change_data() -> None:
        nonlocal end
        end = max(0, end + draw(st.integers(-4, 4)))

    changes = [change_metadata, change_data]
    if header:
        changes += [replace_part, drop_part, move_end, change_dtype]
    for change in draw(st.lists(st.sampled_from(changes), min_size=1, max_size=3)):
        metadata = header.pop("__metadata__", None)  # the other changes are for tensors
        if metadata is not None and change is not change_metadata:
            change()
            header["__metadata__"] = metadata
        else:
            change()
    names = draw(st.permutations(sorted(header)))
    return raw_file({name: header[name] for name in names}, end)


def check_same_verdict(path: Path) -> None:
    refusal = library_refuses(path)
    if refusal is None:
        assert reader_refuses(path) is None
    elif "unknown variant" not in refusal:  # a dtype that is new to the library may pass
        check_refused(path)


@settings(ONE_DIRECTORY, max_examples=300)
@given(content=damaged_headers())
def test_damaged_headers_get_the_verdict_of_the_library(tmp_path: Path, content: bytes) -> None:
    """Neither stricter nor laxer, whatever is changed in entries, metadata and data."""
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    check_same_verdict(path)


@settings(ONE_DIRECTORY, max_examples=200)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_one_wrong_byte_in_the_header_gets_the_verdict_of_the_library(
    tmp_path: Path, place: int, byte: int
) -> None:
    """Read or refused as by the library, and never anything but a CheckpointError."""
    header = {"__metadata__": {"format": "pt"}, "one": entry("F32", [2, 3], 0, 24),
              "two": entry("BF16", [12], 24, 48)}  # fmt: skip
    content = bytearray(raw_file(header, 48))
    content[place % (len(content) - 48)] = byte
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    check_same_verdict(path)


@settings(ONE_DIRECTORY, max_examples=60)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, part: float) -> None:
    """A download that stopped half-way never looks like a smaller model."""
    whole = save({"a": np.ones((3, 5), "f4"), "b": np.ones(7, "i2")})
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(part * len(whole))])
    check_refused(path)
