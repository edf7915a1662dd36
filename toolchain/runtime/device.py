"""The protocol of a CUDA device, as small as the runtime and the kernels need it.

Everything that touches a GPU goes through `Device`: pycuda, NVIDIA's cuda-python and a fake in numpy
implement it (one file each in `devices/`), and no other file imports them.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError

Dim = tuple[int, int, int]
"""Blocks of a grid, or threads of a block, along x, y and z."""


class MemoryInfo(NamedTuple):
    """Device memory in bytes, of all processes together (cuMemGetInfo)."""

    free: int
    total: int


class Buffer(Protocol):
    """Device memory. `free` may be called twice."""

    address: int
    nbytes: int

    def free(self) -> None: ...


class Stream(Protocol):
    """A queue of work that runs in order. `handle` is the CUstream as an integer, for other libraries."""

    handle: int

    def synchronize(self) -> None:
        """Wait until all work queued so far is done."""
        ...


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Stream) -> None: ...

    def synchronize(self) -> None:
        """Wait until the work queued before the point is done."""
        ...


class Graph(Protocol):
    """Captured work. `free` may be called twice."""

    def launch(self, stream: Stream) -> None:
        """Queue all of the work as one."""
        ...

    def free(self) -> None: ...


class Device(Protocol):
    """One GPU and its primary context, which torch and TensorRT share.

    A context is current on threads. On the thread that opened the device it is until `close`, which that
    thread calls before it ends; any other thread works inside `active`. No thread may end with a context:
    pycuda aborts the process then.
    """

    name: str
    """As the driver calls it, such as `Orin`."""
    arch: str
    """What kernels are compiled for: `sm_87`; the fake's is `host`."""

    def active(self) -> AbstractContextManager[None]:
        """The context is current on the calling thread inside the block."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory, uninitialised; SlimdeployError where there is too little."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in page-locked host memory, uninitialised: what `upload` and `download` copy
        asynchronously. Freed with the last reference.
        """
        ...

    def stream(self) -> Stream:
        """A stream of its own, which doesn't wait for the default one."""
        ...

    def upload(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        """Queue a copy of a contiguous host array to the start of `buffer`."""
        ...

    def download(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        """Queue a copy from the start of `buffer` that fills a contiguous host array."""
        ...

    def event(self) -> Event: ...

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """GPU time between two recorded events, ms; waits for `end`."""
        ...

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` queues on `stream` into a graph, without running it. `work` must neither
        allocate nor wait.
        """
        ...

    def memory_info(self) -> MemoryInfo: ...

    def load_kernel(self, image: bytes, name: str) -> Any:
        """The function `name` of a compiled module (a cubin)."""
        ...

    def launch(self, kernel: Any, grid: Dim, block: Dim, parameters: np.ndarray, stream: Stream) -> None:
        """Queue a kernel whose one parameter is a struct: `parameters` has the struct's dtype
        (`align=True`) and shape ().
        """
        ...

    def close(self) -> None:
        """Let the primary context go, in the thread that opened the device; SlimdeployError in another. May
        be called twice.
        """
        ...


IMPLEMENTATIONS = {
    "pycuda": "slimdeploy.toolchain.runtime.devices.pycuda",
    "cuda-python": "slimdeploy.toolchain.runtime.devices.cuda_python",
}
"""Library -> the module with `open_device(index)` over it, in order of preference."""


def open_device(index: int = 0, implementation: str = "auto") -> Device:
    """Open GPU `index` through pycuda or, where that isn't installed, cuda-python.

    Raises SlimdeployError where neither library is installed, or there is no driver or no such GPU.
    """
    if implementation != "auto" and implementation not in IMPLEMENTATIONS:
        known = ", ".join(("auto", *IMPLEMENTATIONS))
        raise SlimdeployError(f"unknown CUDA library {implementation!r}; known: {known}")
    names = list(IMPLEMENTATIONS) if implementation == "auto" else [implementation]
    for name in names:
        try:
            module = importlib.import_module(IMPLEMENTATIONS[name])
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in ("pycuda", "cuda"):
                raise
            continue
        except ImportError as error:  # installed, but linked to a driver that isn't there
            raise SlimdeployError(f"{name} can't be loaded: {error}") from error
        return module.open_device(index)
    raise SlimdeployError(
        f"a CUDA device needs {' or '.join(names)}, which is not installed: pip install 'slimdeploy[cuda]'"
    )


def check_thread(opener: int) -> None:
    """Refuse to close a device in another thread than `opener`, whose context can't be taken from outside."""
    if threading.get_ident() != opener:
        raise SlimdeployError("a device is closed in the thread that opened it")


def check_copy(array: np.ndarray, buffer: Buffer) -> None:
    """Refuse a copy that the driver would get wrong: a strided array, or more bytes than the buffer has."""
    if not array.flags.c_contiguous:
        raise SlimdeployError(f"a copy needs a contiguous array, not strides {array.strides}")
    if array.nbytes > buffer.nbytes:
        raise SlimdeployError(f"a copy of {array.nbytes} bytes doesn't fit a buffer of {buffer.nbytes}")
