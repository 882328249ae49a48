"""Where large products are made, and rows searched for: on the CPU, or on a GPU if asked for.

Methods ask `device` for what pays on a GPU, as they ask `clpstream.memory` for their part of the
memory. What a GPU needs is in `clpstream.gpu`, which is imported only if one is asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clpstream.errors import DeviceError

AUTO, CPU = "auto", "cpu"
_NAMES = re.compile(r"auto|cpu|cuda(?::(\d{1,3}))?")

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Sum:
    """XᵀY of rows that come block by block, X (n, d) and Y (n, e): float64 (d, e)."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._total = np.zeros(shape)

    def add(self, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
        """A block of both: its product is made in their precision."""
        self._total += left.T @ right

    def total(self) -> npt.NDArray[np.float64]:
        """What was added so far."""
        return self._total


class Arrays:
    """numpy. A GPU has a subclass, for which matrices that are "there" are its own.

    `-`, `*`, `/`, `@`, `>`, `.T`, `swapaxes` and slices are the same for both.
    """

    full: tuple[type[Exception], ...] = ()
    """What is raised where there is too little memory."""

    def sent(self, array: npt.NDArray[Any]) -> Any:
        """An array there."""
        return array

    def fetched(self, matrix: Any) -> npt.NDArray[Any]:
        """A numpy array of what is there."""
        found: npt.NDArray[Any] = matrix
        return found

    def held(self, rows: Any) -> Any:
        """A matrix (n, d), or rows that are read block by block: sent once, and there as long as
        the object `rows` exists, which must not change. `rows` itself, if there is no room."""
        return rows

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """float32, there."""
        return np.zeros(shape, np.float32)

    def taken(self, matrix: Any, ids: Ids) -> Any:
        """Some rows of what is there."""
        return matrix[ids]

    def norms(self, matrix: Any) -> Floats:
        """The L2 norms (n,) of rows that are there."""
        norms: Floats = np.linalg.norm(matrix, axis=1)
        return norms

    def product(self, left: Any, right: Any) -> npt.NDArray[Any]:
        """left @ right; each a numpy array, or there."""
        product: npt.NDArray[Any] = left @ right
        return product

    def eigh(self, matrix: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Eigenvalues (n,), rising, and eigenvectors (n, n) of a symmetric matrix."""
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors

    def inverse(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """That of a matrix (n, n)."""
        inverse: npt.NDArray[Any] = np.linalg.inv(matrix)
        return inverse

    def sum(self, shape: tuple[int, int]) -> Sum:
        """A sum of products that is kept there."""
        return Sum(shape)


class Search:
    """FAISS on the CPU."""

    compares_all = False
    """Whether comparing all rows costs less than an index does, however many there are."""

    def index(self, rows: Any, k: int) -> Any:
        """What `best` can find `k` in many times: rows that are sent once, and stay there as long
        as the object `rows` exists. `rows` itself on the CPU, or if there is no room for them."""
        return rows

    def best(self, queries: Floats, rows: Any, k: int) -> tuple[Floats, Ids]:
        """The k largest products of each query (n, d) with rows (m, d) of numpy, or with those of
        an index: (n, k) in falling order, and the rows' places."""
        import faiss  # here, since importing it takes longer than most commands run

        found: tuple[Floats, Ids] = faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
        return found


@dataclass(frozen=True)
class Device:
    """name: "cpu", or the GPU and the libraries that use it."""

    name: str
    arrays: Arrays
    search: Search


_CPU = Device(CPU, Arrays(), Search())
_DEVICE = ContextVar("device", default=_CPU)


def device() -> Device:
    """The one that is used."""
    return _DEVICE.get()


@contextlib.contextmanager
def on_device(found: Device) -> Iterator[None]:
    """Within this context, it is used. Raises DeviceError where its memory is too small."""
    token = _DEVICE.set(found)
    try:
        yield
    except found.arrays.full:
        raise DeviceError(
            f"{found.name}: too little memory; end what else uses it, or take another GPU (cuda:N) "
            "or the CPU (cpu)"
        ) from None
    finally:
        _DEVICE.reset(token)


def find(name: str) -> Device:
    """The device of a name: "cpu"; "cuda" or "cuda:N", a GPU; "auto", a GPU if one can be used.

    Raises DeviceError for another name, and for a GPU that is not there or that no library can use.
    """
    number = gpu_number(name)
    if name == CPU or (name == AUTO and not _gpus()):
        return _CPU
    from clpstream.gpu import open_gpu

    try:
        return open_gpu(number)
    except DeviceError:
        if name == AUTO:
            return _CPU
        raise


def gpu_number(name: str) -> int:
    """Of a device's name; 0 if it has none. Raises DeviceError if it is no device's name."""
    found = _NAMES.fullmatch(name)
    if found is None:
        raise DeviceError(f"device is {name!r}; it can be auto, cpu, cuda or cuda:N")
    return int(found[1] or 0)


def _gpus() -> int:
    """How many GPUs the driver of NVIDIA knows: no library for them need be imported for that."""
    count = ctypes.c_int(0)
    for library in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError, AttributeError):
            driver = ctypes.CDLL(library)
            if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
                return count.value
    return 0
