"""Files of torch.save made byte by byte, without torch and without pickle.

Nothing here uses clpstream: what the tests hold it against must be independent of it.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
            "float64": "DoubleStorage", "uint8": "ByteStorage", "int64": "LongStorage",
            "bool": "BoolStorage", "complex64": "ComplexFloatStorage"}  # fmt: skip
PROTO = b"\x80\x02"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind: str, key: str, elements: int, view: bytes = b"") -> bytes:
    """A storage by its persistent id; `view` is the legacy format's last item."""
    saved = text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
    return b"(" + saved + number(elements) + view + b"tQ"


def tensor(
    where: bytes, shape: Sequence[int], strides: Sequence[int], offset: int = 0, more: bytes = b""
) -> bytes:
    """A tensor over the storage `where`."""
    sizes = numbers(shape) + numbers(strides)
    return REBUILD + b"(" + where + number(offset) + sizes + b"\x89" + ORDERED_DICT + more + b"tR"


def ordered_dict(values: Mapping[str, bytes]) -> bytes:
    """A state dict, with the `_metadata` that Module.state_dict gives it."""
    items = b"".join(text(name) + value for name, value in values.items())
    metadata = b"}" + text("_metadata") + ORDERED_DICT + b"sb"
    return ORDERED_DICT + b"(" + items + b"u" + metadata


def c_strides(shape: Sequence[int]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]


def zip_file(
    path: Path, pickle: bytes, storages: Mapping[str, bytes], folder: str = "archive"
) -> None:
    """The format since torch 1.6; the local headers have an extra field, as torch's have."""
    entries = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{key}": data for key, data in storages.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(f"{folder}/{name}")
            info.extra = struct.pack("<HH", 0x4246, 13) + b"Z" * 13
            archive.writestr(info, content)


def legacy_start(little_endian: bool = True) -> bytes:
    magic = PROTO + number(0x1950A86A20F9469CFC6C) + b"."
    machine = b"}(" + text("little_endian") + (b"\x88" if little_endian else b"\x89") + b"u"
    return magic + PROTO + number(1001) + b"." + PROTO + machine + b"."


def legacy_keys(keys: Sequence[str]) -> bytes:
    return PROTO + b"](" + b"".join(map(text, keys)) + b"e."


def write_torch(
    path: Path, tensors: Mapping[str, np.ndarray], legacy: bool = False, transposed: bool = False
) -> None:
    """What torch.save(state_dict, path) writes; `transposed`: matrices lie in Fortran order."""
    values, data = {}, {}
    for name, array in tensors.items():
        key, shape = str(len(data)), array.shape
        turned = transposed and array.ndim == 2
        strides = [1, shape[0]] if turned else c_strides(shape)
        kind = STORAGES[array.dtype.name]
        where = storage(kind, key, array.size, b"N" if legacy else b"")
        values[name] = tensor(where, shape, strides)
        data[key] = np.ascontiguousarray(array.T if turned else array).tobytes()
    pickle = PROTO + ordered_dict(values) + b"."
    if not legacy:
        zip_file(path, pickle, data, folder=path.stem)
        return
    sizes = [array.size for array in tensors.values()]
    content = legacy_start() + pickle + legacy_keys(list(data))
    for size, raw in zip(sizes, data.values(), strict=True):
        content += struct.pack("<q", size) + raw
    path.write_bytes(content)
