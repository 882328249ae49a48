"""Stand-ins for GPUs: torch on the CPU, and numpy in the place of CuPy and of FAISS for GPUs.

They can't tell whether a real GPU does what they do. They are stricter than one in what they take.
"""

from __future__ import annotations

import sys
import threading
import types

import faiss
import numpy as np

from clpstream.device import Device
from clpstream.gpu import GpuArrays, GpuSearch, Torch


def torch_on_cpu():
    """The device for torch, on the CPU: the code for a GPU but for the name of the device."""

    class OnCpu(Torch):
        def free(self):
            return 1 << 30

    arrays = GpuArrays(OnCpu("cpu"))
    return Device("torch on the CPU", arrays, GpuSearch(arrays))


class There(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the GPU: like CuPy's, it takes part in nothing with one of numpy."""

    living = 0

    def __init__(self, array):
        self.array = array
        There.living += 1

    def __del__(self):
        There.living -= 1

    shape = property(lambda self: self.array.shape)
    T = property(lambda self: There(self.array.T))

    def swapaxes(self, one, other):
        return There(self.array.swapaxes(one, other))

    def sum(self, axis):
        return There(self.array.sum(axis))

    def astype(self, dtype):
        return There(self.array.astype(dtype))

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to a numpy array")

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        arrays = [one for one in (*inputs, *out) if not np.isscalar(one)]
        if method != "__call__" or not all(isinstance(one, There) for one in arrays):
            raise TypeError(f"{ufunc}: an array of numpy and one on the GPU")
        if ufunc is np.matmul and len({one.array.dtype for one in arrays}) > 1:
            raise TypeError("torch multiplies no float32 with float64")
        inputs = [one.array if isinstance(one, There) else one for one in inputs]
        if out:
            ufunc(*inputs, out=out[0].array, casting="same_kind", **kwargs)
            return out[0]
        return There(ufunc(*inputs, **kwargs))

    def __getitem__(self, index):
        return There(self.array[self._known(index)])

    def __setitem__(self, index, value):
        self.array[self._known(index)] = value.array if isinstance(value, There) else value

    def _known(self, index):
        if isinstance(index, tuple):
            return tuple(map(self._known, index))
        if isinstance(index, np.ndarray):
            raise TypeError("an index of numpy")
        return index.array if isinstance(index, There) else index


class OutOfMemoryError(MemoryError):
    """What the stand-in for CuPy raises."""


class FakeCuPy:
    """Puts a module in the place of CuPy: `sent` are the arrays that went to the GPU; free is the
    memory that it says it has, and room what it has, for one array."""

    def __init__(self, monkeypatch, gpus=1, free=1 << 30, room=1 << 40):
        self.sent = []
        self.used = []
        self.room = room
        module = types.ModuleType("cupy")
        module.__version__ = "0"
        module.array = self._array
        module.asnumpy = lambda there: there.array.copy()
        module.zeros = self._zeros
        module.argsort = lambda there, axis: There(there.array.argsort(axis))
        module.take_along_axis = lambda there, places, axis: There(
            np.take_along_axis(there.array, places.array, axis)
        )
        module.linalg = types.SimpleNamespace(
            eigh=lambda there: tuple(map(There, np.linalg.eigh(there.array))),
            inv=lambda there: There(np.linalg.inv(there.array)),
        )
        module.cuda = types.SimpleNamespace(
            runtime=types.SimpleNamespace(getDeviceCount=lambda: gpus),
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=lambda number: types.SimpleNamespace(
                use=lambda: self.used.append((threading.get_ident(), number)),
                mem_info=(free, 1 << 40),
            ),
        )
        monkeypatch.setitem(sys.modules, "cupy", module)
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)

    def _array(self, array):
        if array.nbytes > self.room:
            raise OutOfMemoryError
        self.sent.append(array)
        return There(array.copy())

    def _zeros(self, shape, dtype):
        if np.dtype(dtype).itemsize * np.prod(shape) > self.room:
            raise OutOfMemoryError
        return There(np.zeros(shape, dtype))


class FakeFaiss:
    """Gives FAISS what a build for GPUs has: `indexes` are those that were made, room is the memory
    for one of them."""

    def __init__(self, monkeypatch, gpus=1, room=1 << 40):
        self.indexes = []
        self.room = room
        fake = self

        class GpuIndexFlatConfig:
            device = 0

        class GpuIndexFlatIP:
            def __init__(self, resources, width, config):
                assert isinstance(resources, self.Resources) and config.device < gpus
                self.index = faiss.IndexFlatIP(width)
                self.number, self.added, self.searches = config.device, 0, []
                fake.indexes.append(self)

            class Resources:
                pass

            def add(self, rows):
                assert rows.dtype == np.float32 and rows.flags.c_contiguous
                self.added += rows.nbytes
                if self.added > fake.room:
                    raise RuntimeError("alloc fail")
                self.index.add(rows)

            def search(self, queries, k):
                assert queries.dtype == np.float32 and queries.flags.c_contiguous and k <= 2048
                self.searches.append(len(queries))
                return self.index.search(queries, k)

        names = {
            "get_num_gpus": lambda: gpus,
            "StandardGpuResources": GpuIndexFlatIP.Resources,
            "GpuIndexFlatConfig": GpuIndexFlatConfig,
            "GpuIndexFlatIP": GpuIndexFlatIP,
        }
        for name, value in names.items():
            monkeypatch.setattr(faiss, name, value, raising=False)
        monkeypatch.setitem(sys.modules, "torch", None)
        monkeypatch.setitem(sys.modules, "cupy", None)
