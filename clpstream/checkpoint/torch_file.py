"""Where each tensor lies in a file of torch.save, found without torch and without running anything.

Two formats. Since torch 1.6 a zip archive: `<folder>/data.pkl`, and one stored entry
`<folder>/data/<key>` for each storage. Before that ("legacy"), pickles one after the other (a magic
number, the version, the machine, the object, the storages' keys), then for each key the number of
elements in 64 bits and the storage's data.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from clpstream.checkpoint.dtypes import BITS
from clpstream.checkpoint.pickles import (
    MAX_BYTES,
    Calls,
    Global,
    Skipped,
    UnsafePickleError,
    load,
    shown,
)
from clpstream.checkpoint.safetensors_file import Shard, TensorSpan
from clpstream.errors import CheckpointError
from clpstream.inputs import refuse_lfs_pointer

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, OverflowError, struct.error)
"""What zipfile raises, besides ValueError, where an archive is damaged."""
_LINE_BYTES = 1 << 16
_MAX_AXES = 32  # of a numpy array
_MAX_REPEATED_BYTES = 1 << 30
"""Of a tensor that is larger than its storage: it repeats values."""

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "complex64": "C64",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
}
"""torch's dtypes in the spelling of safetensors."""
_FOREIGN_DTYPES = {
    "complex128": 16,
    "complex32": 4,
    "qint32": 4,
    **dict.fromkeys(("float4_e2m1fn_x2", "qint8", "quint8", "quint4x2", "quint2x4"), 1),
}
"""Bytes of the elements of dtypes that safetensors does not have."""
_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "QInt32": "qint32",
    "QInt8": "qint8",
    "QUInt8": "quint8",
    "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
}
_STORAGE_DTYPES = {
    **{f"torch {kind}Storage": dtype for kind, dtype in _STORAGES.items()},
    "torch UntypedStorage": "uint8",
    "torch.storage UntypedStorage": "uint8",
}


@dataclass(frozen=True, eq=False)
class _Storage:
    """Bytes from `begin` on, `length` of them, in the storage `key`, which has `whole` bytes."""

    key: str
    dtype: str
    begin: int
    length: int
    whole: int


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor as the pickle has it, not yet checked: offset and strides are in elements."""

    storage: _Storage
    dtype: str
    offset: Any
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class _Unreadable:
    """A tensor that can't be taken from a storage as it is."""

    kind: str


class _File(io.BufferedReader):
    """A file whose lengths are not believed: no read takes more than a limit."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > min(MAX_BYTES, self.size):
            raise ValueError(f"a length of {size} bytes in it can't be true")
        return super().read(min(MAX_BYTES, self.size) if size in (None, -1) else size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(_LINE_BYTES)

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`; fewer where the file ends."""
        return os.pread(self.fileno(), count, offset) if 0 <= offset < self.size else b""


def read_torch_file(path: Path) -> Shard:
    """Read and check the pickle of a file of torch.save; no tensor data is read.

    The file holds a dict of tensors, or one under "state_dict" or "model"; what else is in it is
    skipped. The tensors come in the order in which a safetensors file has them: larger dtypes
    first, so that all are aligned.

    Raises CheckpointError, naming file and tensor, for a pickle that wants to call anything but
    what rebuilds tensors, a damaged file, a tensor that leaves its storage, and what safetensors
    can't hold.
    """
    try:
        refuse_lfs_pointer(path)
        with _File(path) as file:
            if file.at(0, 4) == _ZIP:
                value, storages, pickle = _read_zip(path, file)
            else:
                value, storages, pickle = _read_legacy(path, file)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnsafePickleError as error:
        raise CheckpointError(
            f"{path}: its pickle wants to call {error}, which tensors don't need; it may be "
            "malicious: take the model's safetensors files; if there are none and you trust it, "
            "load it with torch and save its state_dict alone"
        ) from None
    except (ValueError, *_ZIP_ERRORS) as error:
        _damaged(path, shown(str(error), 300))
    tensors = _state_dict(path, value)
    spans = [_span(path, name, tensor, storages) for name, tensor in tensors.items()]
    spans.sort(key=lambda span: (-BITS[span.dtype], span.offset, span.name))
    return Shard(path, file.size, pickle.stop, tuple(spans), {"format": "pt"}, pickle.start)


def _damaged(path: Path, fault: str) -> NoReturn:
    raise CheckpointError(f"{path}: {fault}; the file is damaged: download it again")


def _read_zip(path: Path, file: _File) -> tuple[Any, dict[str, range], range]:
    """The object, the storages by key and the pickle, as ranges of the file's bytes."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise ValueError("its zip directory has a name twice")
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path}: a zip archive with {len(pickles)} data.pkl and not one, so not of torch.save;"
            " save the model again"
        )
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "byteorder" in entries:
        order = _payload(path, file, entries[folder + "byteorder"])
        if file.at(order.start, min(len(order), 16)) != b"little":
            _big_endian(path)
    pickle = _payload(path, file, entries[pickles[0]])
    file.seek(pickle.start)
    value = load(file, _CALLS, _persistent)
    if file.tell() > pickle.stop:
        raise ValueError("its pickle runs out of data.pkl")
    pickle = range(pickle.start, file.tell())
    data = folder + "data/"
    storages = {
        name.removeprefix(data): _payload(path, file, info)
        for name, info in entries.items()
        if name.startswith(data)
    }
    return value, storages, pickle


def _payload(path: Path, file: _File, info: zipfile.ZipInfo) -> range:
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        how = "encrypted" if info.flag_bits & 1 else "compressed"
        raise CheckpointError(
            f"{path}: its entry {shown(info.filename)} is {how}, which torch.save does not do; "
            "save the model again"
        )
    # the local header's sizes may be 0 and its extra field another one than the directory's
    local = file.at(info.header_offset, 30)
    name, extra = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    start = info.header_offset + 30 + name + extra
    if len(local) < 30 or local[:4] != _ZIP or start + info.file_size > file.size:
        raise ValueError(f"truncated: its entry {shown(info.filename)} does not lie in the file")
    return range(start, start + info.file_size)


def _big_endian(path: Path) -> NoReturn:
    raise CheckpointError(
        f"{path}: its data is big-endian, and safetensors is little-endian; save the model again "
        "on a little-endian machine"
    )


def _read_legacy(path: Path, file: _File) -> tuple[Any, dict[str, range], range]:
    """As `_read_zip`."""
    if file.at(257, 5) == b"ustar":
        raise CheckpointError(
            f"{path}: the tar format of the first torch versions, which is not read; load it with "
            "torch and save it again"
        )
    try:
        magic = load(file, _CALLS, _no_persistent)
    except UnsafePickleError:  # a ValueError too
        raise
    except ValueError:
        magic = None
    if type(magic) is not int or magic != _MAGIC:
        raise CheckpointError(f"{path}: not a file of torch.save; download it again")
    used: dict[str, _Storage] = {}

    def persistent(saved: Any) -> _Storage:
        storage = _persistent(saved)
        first = used.setdefault(storage.key, storage)
        if (first.dtype, first.whole) != (storage.dtype, storage.whole):
            raise ValueError(f"its storage {shown(storage.key)} has two dtypes or sizes")
        return storage

    version, machine = load(file, _CALLS, _no_persistent), load(file, _CALLS, _no_persistent)
    if type(version) is not int or version != _VERSION or type(machine) is not dict:
        raise ValueError("its version is not one that torch.save writes")
    if machine.get("little_endian") is not True:
        _big_endian(path)
    start = file.tell()
    value = load(file, _CALLS, persistent)
    pickle = range(start, file.tell())
    keys = load(file, _CALLS, _no_persistent)
    if type(keys) is not list or not all(type(key) is str and key in used for key in keys):
        raise ValueError("its list of storages does not belong to its tensors")
    return value, _legacy_storages(file, keys, used), pickle


def _legacy_storages(
    file: _File, keys: list[str], used: Mapping[str, _Storage]
) -> dict[str, range]:
    storages, end = {}, file.tell()
    for key in keys:
        size = _element_bytes(used[key].dtype) * int.from_bytes(file.at(end, 8), "little")
        if size != used[key].whole or end + 8 + size > file.size:
            raise ValueError(f"truncated: its storage {shown(key)} does not lie in the file")
        storages[key] = range(end + 8, end + 8 + size)
        end += 8 + size
    return storages


def _element_bytes(dtype: str) -> int:
    return BITS[_DTYPES[dtype]] // 8 if dtype in _DTYPES else _FOREIGN_DTYPES[dtype]


def _no_persistent(saved: Any) -> NoReturn:
    raise UnsafePickleError("an object from outside")


def _persistent(saved: Any) -> _Storage:
    """("storage", storage class, key, device, elements), and in the legacy format the view:
    None, or (key, first element, elements)."""
    if type(saved) is not tuple or len(saved) not in (5, 6) or not _is_text(saved[0], "storage"):
        raise UnsafePickleError("an object from outside that is no storage")
    kind, key, elements = saved[1], saved[2], saved[4]
    dtype = _STORAGE_DTYPES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None or type(key) is not str or not _is_size(elements):
        raise ValueError("a storage without type, key and size")
    first, count = 0, elements
    if len(saved) == 6 and saved[5] is not None:
        if type(saved[5]) is not tuple or len(saved[5]) != 3:
            raise ValueError("a storage with a view that is none")
        _, first, count = saved[5]
        if not _is_size(first) or not _is_size(count) or first + count > elements:
            raise ValueError("a storage with a view that leaves it")
    size = _element_bytes(dtype)
    return _Storage(key, dtype, first * size, count * size, elements * size)


def _is_text(value: Any, text: str) -> bool:
    return type(value) is str and value == text


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> _Tensor | _Unreadable:
    dtype = storage.dtype if isinstance(storage, _Storage) else ""
    return _tensor(storage, dtype, offset, size, stride, metadata)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> _Tensor | _Unreadable:
    name = dtype.name.removeprefix("torch ") if isinstance(dtype, Global) else ""
    if name not in _DTYPES and name not in _FOREIGN_DTYPES:
        raise ValueError("a tensor without a dtype")
    return _tensor(storage, name, offset, size, stride, metadata)


def _tensor(
    storage: Any, dtype: str, offset: Any, size: Any, stride: Any, metadata: Any
) -> _Tensor | _Unreadable:
    if not isinstance(storage, _Storage) or not all(
        type(numbers) in (tuple, list) and len(numbers) <= _MAX_AXES for numbers in (size, stride)
    ):
        raise ValueError(f"a tensor without storage, size and strides, or of over {_MAX_AXES} axes")
    if metadata:  # a conjugate or negative view: its values are not those of its storage
        return _Unreadable("a view with changed signs")
    if dtype not in _DTYPES:
        return _Unreadable(f"of dtype {dtype}, which safetensors does not have")
    return _Tensor(storage, dtype, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *rest: Any) -> _Tensor | _Unreadable:
    if not isinstance(data, (_Tensor, _Unreadable)):
        raise ValueError("a parameter that is no tensor")
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor that has attributes, which are dropped."""
    rebuild = _REBUILD_TENSOR.get(function.name) if isinstance(function, Global) else None
    if rebuild is None or type(arguments) is not tuple:
        raise UnsafePickleError(f"{function if isinstance(function, Global) else 'something'}")
    return rebuild(*arguments)


def _ordered_dict() -> dict[str, Any]:
    """Its items come after it; `dict` itself would take, copy and hash what it is given."""
    return {}


def _unreadable(kind: str) -> Any:
    return lambda *arguments: _Unreadable(kind)


def _skip(*arguments: Any) -> Skipped:
    return Skipped()


_REBUILD_TENSOR = {
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils _rebuild_qtensor": _unreadable("quantised"),
    "torch._utils _rebuild_sparse_tensor": _unreadable("sparse"),
    "torch._utils _rebuild_sparse_csr_tensor": _unreadable("sparse"),
    "torch._utils _rebuild_nested_tensor": _unreadable("nested"),
    "torch._utils _rebuild_meta_tensor_no_storage": _unreadable("on the meta device, without data"),
}
_CALLS: Calls = {
    "collections OrderedDict": _ordered_dict,
    "torch Size": lambda size: size,
    "torch device": _skip,
    "torch.serialization _get_layout": _skip,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch._utils _rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor _rebuild_from_type_v2": _rebuild_from_type,
    **_REBUILD_TENSOR,
    **dict.fromkeys(_STORAGE_DTYPES),
    **dict.fromkeys(f"torch {dtype}" for dtype in (*_DTYPES, *_FOREIGN_DTYPES)),
    **dict.fromkeys(("torch Tensor", "torch.nn.parameter Parameter", "torch.nn.parameter Buffer")),
    **dict.fromkeys(("torch per_tensor_affine", "torch per_channel_affine")),
}


def _tensors(found: dict[str, Any]) -> dict[str, _Tensor | _Unreadable]:
    return {k: v for k, v in found.items() if isinstance(v, (_Tensor, _Unreadable))}


def _state_dict(path: Path, value: Any) -> dict[str, _Tensor | _Unreadable]:
    nested = [value.get(key) for key in ("state_dict", "model")] if type(value) is dict else []
    dicts = [found for found in (value, *nested) if type(found) is dict]
    best = max(dicts, key=lambda found: len(_tensors(found)), default={})
    if tensors := _tensors(best):
        for key, inner in best.items():
            if type(inner) is dict and _tensors(inner):
                raise CheckpointError(
                    f"{path}: tensors inside '{shown(key)}' would be lost; save the model's flat "
                    "state_dict()"
                )
        return tensors
    raise CheckpointError(
        f"{path}: it holds no dict of tensors, by itself or under 'state_dict' or 'model'; save "
        "the model's state_dict()"
    )


def _span(
    path: Path, name: str, tensor: _Tensor | _Unreadable, storages: Mapping[str, range]
) -> TensorSpan:
    where = f"tensor '{shown(name)}'"
    if name == "__metadata__" or name != name.encode("utf-8", "replace").decode():
        raise CheckpointError(
            f"{path}: {where}: safetensors can't have a tensor of this name; rename it"
        )
    if isinstance(tensor, _Unreadable):
        raise CheckpointError(
            f"{path}: {where}: it is {tensor.kind}; save it as a plain dense tensor"
        )
    shape, strides, storage = tensor.shape, tensor.strides, tensor.storage
    if not all(map(_is_size, (tensor.offset, *shape, *strides))) or len(shape) != len(strides):
        _damaged(path, f"{where}: its offset, shape and strides are not sizes that fit together")
    itemsize = _element_bytes(tensor.dtype)
    length = prod(shape) * itemsize
    first = tensor.offset * itemsize
    last = first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) * itemsize
    data = storages.get(storage.key)
    if data is None or len(data) < storage.whole:
        _damaged(path, f"{where}: its storage {shown(storage.key)} is not there, or too short")
    if length and last + itemsize > storage.length:
        _damaged(path, f"{where}: it leaves its storage of {storage.length} bytes")
    if length > max(storage.length, _MAX_REPEATED_BYTES):
        _damaged(path, f"{where}: it makes {length} bytes of {storage.length}")
    return TensorSpan(
        name,
        path,
        data.start + (storage.begin + first if length else 0),
        length,
        _DTYPES[tensor.dtype],
        shape,
        None if _is_contiguous(shape, strides) else strides,
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie in C order; along an axis of one element, strides don't matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True
