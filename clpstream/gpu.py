"""A GPU: what `clpstream.device` has for the CPU, by torch, CuPy, or FAISS built for GPUs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from importlib import import_module
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from clpstream.device import Arrays, Device, Floats, Ids, Search, Sum
from clpstream.errors import DeviceError
from clpstream.memory import block_bytes

_SCORES = 256 << 20
"""Bytes of scores that are on the GPU at one time, and more where they are for few rows; of other
numbers that are not kept, too."""
_MOST_OF_FAISS = 2048
"""The largest k of FAISS on a GPU."""


class Library(Protocol):
    """What is called differently in torch and in CuPy."""

    name: str
    out_of_memory: type[Exception]
    linalg: Any

    def sent(self, array: npt.NDArray[Any]) -> Any: ...

    def fetched(self, matrix: Any) -> npt.NDArray[Any]: ...

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any: ...

    def doubles(self, matrix: Any) -> Any:
        """The matrix in float64."""
        ...

    def largest(self, scores: Any, k: int) -> tuple[Any, Any]:
        """The k largest of each line, in falling order, and their places."""
        ...

    def free(self) -> int:
        """Bytes of the GPU's memory."""
        ...


class Torch:
    """PyTorch, on the device of a name that it knows."""

    def __init__(self, where: str) -> None:
        torch: Any = import_module("torch")
        self.name = f"torch {torch.__version__}"
        self.out_of_memory = torch.cuda.OutOfMemoryError
        self.linalg = torch.linalg
        self._torch = torch
        self._where = torch.device(where)

    @classmethod
    def on_gpu(cls, number: int) -> Torch:
        """Raises DeviceError if torch sees no such GPU."""
        library = cls(f"cuda:{number}")
        _check_number(number, library._torch.cuda.device_count())
        return library

    def sent(self, array: npt.NDArray[Any]) -> Any:
        return self._torch.tensor(array, device=self._where)

    def fetched(self, matrix: Any) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = matrix.cpu().numpy()
        return found

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._torch.zeros(shape, dtype=getattr(self._torch, dtype), device=self._where)

    def doubles(self, matrix: Any) -> Any:
        return matrix.double()

    def largest(self, scores: Any, k: int) -> tuple[Any, Any]:
        values, places = self._torch.topk(scores, k, dim=1)
        return values, places

    def free(self) -> int:
        return int(self._torch.cuda.mem_get_info(self._where)[0])


class CuPy:
    """CuPy, on the GPU of a number."""

    def __init__(self, number: int) -> None:
        cupy: Any = import_module("cupy")
        _check_number(number, cupy.cuda.runtime.getDeviceCount())
        self.name = f"CuPy {cupy.__version__}"
        self.out_of_memory = cupy.cuda.memory.OutOfMemoryError
        self.linalg = cupy.linalg
        self._cupy = cupy
        self._device = cupy.cuda.Device(number)

    def sent(self, array: npt.NDArray[Any]) -> Any:
        self._device.use()  # of each thread, the first GPU is what it uses
        return self._cupy.array(array)

    def fetched(self, matrix: Any) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = self._cupy.asnumpy(matrix)
        return found

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        self._device.use()
        return self._cupy.zeros(shape, dtype)

    def doubles(self, matrix: Any) -> Any:
        return matrix.astype("float64")

    def largest(self, scores: Any, k: int) -> tuple[Any, Any]:
        # its argpartition sorts everything too
        places = self._cupy.argsort(-scores, axis=1)[:, :k]
        return self._cupy.take_along_axis(scores, places, axis=1), places

    def free(self) -> int:
        return int(self._device.mem_info[0])


class _Kept:
    """What is made of objects once, and kept as long as they exist."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        """make: gives None if there is no room, and is not asked again."""
        self._make = make
        self._made: dict[int, Any] = {}

    def of(self, rows: Any) -> Any:
        """What is made of rows, or the rows themselves."""
        if id(rows) not in self._made:
            self._made[id(rows)] = self._make(rows)
            weakref.finalize(rows, self._made.pop, id(rows), None).atexit = False
        made = self._made[id(rows)]
        return rows if made is None else made


class GpuSum(Sum):
    """See `Sum`: kept on a GPU until it is asked for."""

    def __init__(self, arrays: GpuArrays, shape: tuple[int, int]) -> None:
        self._arrays = arrays
        self._there = arrays.backend.zeros(shape, "float64")

    def add(self, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
        """See `Sum.add`."""
        ours = self._arrays.sent(left)
        theirs = ours if right is left else self._arrays.sent(right)
        self._there += ours.T @ theirs

    def total(self) -> npt.NDArray[np.float64]:
        """See `Sum.total`."""
        return self._arrays.fetched(self._there)


class GpuArrays(Arrays):
    """See `Arrays`."""

    def __init__(self, library: Library) -> None:
        self.backend = library
        self.full = (library.out_of_memory,)
        self._held = _Kept(self._copy)

    def sent(self, array: npt.NDArray[Any]) -> Any:
        """See `Arrays.sent`."""
        return self.backend.sent(array)

    def fetched(self, matrix: Any) -> npt.NDArray[Any]:
        """See `Arrays.fetched`."""
        return self.backend.fetched(matrix)

    def held(self, rows: Any) -> Any:
        """See `Arrays.held`."""
        return self._held.of(rows)

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """See `Arrays.zeros`."""
        return self.backend.zeros(shape, "float32")

    def taken(self, matrix: Any, ids: Ids) -> Any:
        """See `Arrays.taken`."""
        return matrix[self.backend.sent(ids)]

    def norms(self, matrix: Any) -> Floats:
        """See `Arrays.norms`."""
        norms: Floats = np.sqrt(self.backend.fetched((matrix * matrix).sum(1)))
        return norms

    def dots(self, left: Floats, rows: Any, ids: Ids) -> npt.NDArray[np.float64]:
        """Products (n, k) of each row (n, d) with those `ids` (n, k) of rows that are there, summed
        in float64."""
        found = np.empty(ids.shape)
        step = max(1, self._room() // (16 * max(1, ids.shape[1]) * left.shape[1]))
        for start in range(0, len(ids), step):
            some = slice(start, start + step)
            near = self.backend.doubles(self.taken(rows, ids[some]))
            ours = self.backend.doubles(self.sent(left[some]))
            found[some] = self.fetched((near @ ours[:, :, None])[:, :, 0])
        return found

    def product(self, left: Any, right: Any) -> npt.NDArray[Any]:
        """See `Arrays.product`."""
        return self.backend.fetched(self._there(left) @ self._there(right))

    def eigh(self, matrix: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """See `Arrays.eigh`."""
        values, vectors = self.backend.linalg.eigh(self.backend.sent(matrix))
        return self.backend.fetched(values), self.backend.fetched(vectors)

    def inverse(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See `Arrays.inverse`."""
        return self.backend.fetched(self.backend.linalg.inv(self.backend.sent(matrix)))

    def sum(self, shape: tuple[int, int]) -> Sum:
        """See `Arrays.sum`."""
        return GpuSum(self, shape)

    def largest(
        self, queries: Any, rows: Any, k: int, *, magnitude: bool = False
    ) -> tuple[Floats, Ids]:
        """The k largest products of each query (n, d) with rows (m, d), or the largest without
        their signs: in falling order, with their places. Both are numpy arrays, or there."""
        queries, rows = self._there(queries), self._there(rows)
        step = max(k, self._room() // (4 * max(1, queries.shape[0])))
        scores, places = [], []
        for start in range(0, rows.shape[0], step):
            part = queries @ rows[start : start + step].T
            best, found = self.backend.largest(
                abs(part) if magnitude else part, min(k, part.shape[1])
            )
            scores.append(self.backend.fetched(best))
            places.append(self.backend.fetched(found) + start)
        return _first(np.hstack(scores), np.hstack(places), k)

    def _room(self) -> int:
        """Bytes of what is made there and not kept."""
        return min(_SCORES, self.backend.free() // 4)

    def _there(self, matrix: Any) -> Any:
        return self.backend.sent(matrix) if isinstance(matrix, np.ndarray) else matrix

    def _copy(self, rows: Any) -> Any:
        """Rows as a matrix there; None if they take more than half of what is free."""
        dtype = rows.dtype if isinstance(rows, np.ndarray) else np.dtype(np.float32)
        if dtype.itemsize * prod(rows.shape) > self.backend.free() // 2:
            return None
        matrix = self.backend.zeros(rows.shape, dtype.name)
        for block in _blocks(rows):
            matrix[block] = self.backend.sent(rows[block])
        return matrix


class GpuSearch(Search):
    """By products with all rows."""

    compares_all = True

    def __init__(self, arrays: GpuArrays) -> None:
        self._arrays = arrays

    def index(self, rows: Any, k: int) -> Any:
        """See `Search.index`."""
        return self._arrays.held(rows)

    def best(self, queries: Floats, rows: Any, k: int) -> tuple[Floats, Ids]:
        """See `Search.best`."""
        return self._arrays.largest(queries, rows, k)


class FaissSearch(Search):
    """By FAISS on a GPU; for more neighbours than it finds there, on the CPU."""

    compares_all = True

    def __init__(self, number: int) -> None:
        faiss: Any = import_module("faiss")
        _check_number(number, faiss.get_num_gpus())
        self.name = f"FAISS {faiss.__version__}"
        self._faiss = faiss
        self._resources = faiss.StandardGpuResources()
        self._config = faiss.GpuIndexFlatConfig()
        self._config.device = number
        self._indexes = _Kept(self._indexed)

    def index(self, rows: Any, k: int) -> Any:
        """See `Search.index`."""
        return self._indexes.of(rows) if k <= _MOST_OF_FAISS else rows

    def best(self, queries: Floats, rows: Any, k: int) -> tuple[Floats, Ids]:
        """See `Search.best`."""
        index = rows
        if isinstance(rows, np.ndarray):
            index = self._indexed(rows) if k <= _MOST_OF_FAISS else None
        if index is None:
            return super().best(queries, rows, k)
        try:
            scores, places = index.search(np.ascontiguousarray(queries), k)
        except RuntimeError as error:
            raise DeviceError(f"{self.name} can't search on the GPU: {_reason(error)}") from None
        return _first(scores, places, k)

    def _indexed(self, rows: Any) -> Any:
        """An index of the rows; None if the GPU's memory is too small."""
        index = self._faiss.GpuIndexFlatIP(self._resources, rows.shape[1], self._config)
        try:
            for block in _blocks(rows):
                index.add(rows[block])
        except RuntimeError:  # which it raises where memory can't be had
            return None
        return index


Found = TypeVar("Found", GpuArrays, FaissSearch)


def open_gpu(number: int) -> Device:
    """A GPU, with what of FAISS, torch and CuPy can use it: the search is FAISS's, if it is built
    for GPUs; all other products, and else the search, are torch's, or CuPy's without it.

    Raises DeviceError that says why none of them can.
    """
    why: list[str] = []
    search = _tried("FAISS", lambda: FaissSearch(number), why)
    arrays = _tried("torch", lambda: GpuArrays(Torch.on_gpu(number)), why)
    arrays = arrays or _tried("CuPy", lambda: GpuArrays(CuPy(number)), why)
    if arrays is not None:
        names = arrays.backend.name if search is None else f"{search.name}, {arrays.backend.name}"
        return Device(f"cuda:{number} ({names})", arrays, search or GpuSearch(arrays))
    if search is not None:
        return Device(f"cuda:{number} ({search.name})", Arrays(), search)
    raise DeviceError(
        f"cuda:{number}: no library can use this GPU ({'; '.join(why)}); install torch or CuPy for "
        "its version of CUDA, choose another number, or the device cpu"
    )


def _tried(name: str, make: Callable[[], Found], why: list[str]) -> Found | None:
    """What is made, if it works; if not, why."""
    try:
        found = make()
        _check_precision(found)
    except Exception as error:  # whatever a library that does not fit the driver may raise
        why.append(f"{name}: {_reason(error)}")
        return None
    return found


def _reason(error: Exception) -> str:
    """The first line of what a library says."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _check_precision(found: GpuArrays | FaissSearch) -> None:
    """Raise DeviceError unless products are those of float32.

    A GPU may be set up to round what it multiplies to TF32's 10 bits.
    """
    fine, ones = np.full((256, 256), 1 + 2**-12, np.float32), np.ones((256, 256), np.float32)
    if isinstance(found, GpuArrays):
        products = found.product(fine, ones)
    else:
        products = found.best(fine, ones, 1)[0]
    if not (products == 256 + 2**-4).all():
        raise DeviceError("multiplies with less than float32's precision, as TF32 has it")


def _check_number(number: int, count: int) -> None:
    if number >= count:
        raise DeviceError(f"sees {count or 'no'} GPU{'s' if count > 1 else ''}")


def _blocks(rows: Any) -> Iterator[slice]:
    count, width = rows.shape
    step = max(1, block_bytes() // (4 * max(1, width)))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _first(scores: npt.NDArray[Any], places: npt.NDArray[Any], k: int) -> tuple[Floats, Ids]:
    """The k largest scores of each line, of equal ones those of the first places."""
    order = np.lexsort((places, -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(places, order, axis=1)
