"""The protocol of a CUDA device, with only the functions that the runtime and the kernels need.

All GPU access goes through `Device`. pycuda, NVIDIA's cuda-python and a fake in numpy implement it (one file
each in `devices/`); no other file imports them.
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
    """Device memory. `free` may be called more than once."""

    address: int
    nbytes: int

    def free(self) -> None: ...


class Stream(Protocol):
    """A CUDA stream. `handle` is the CUstream as an integer, for other libraries."""

    handle: int

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        ...


class Event(Protocol):
    """An event in a stream."""

    def record(self, stream: Stream) -> None: ...

    def synchronize(self) -> None:
        """Wait until all work before the event is done."""
        ...


class Graph(Protocol):
    """A CUDA graph. `free` may be called more than once."""

    def launch(self, stream: Stream) -> None:
        """Launch the graph."""
        ...

    def free(self) -> None: ...


class Device(Protocol):
    """One GPU and its primary context, which torch and TensorRT share.

    A context is current per thread. On the thread that opened the device it is current until `close`, which
    that thread must call before it ends; other threads work inside `active`. A thread must not end with a
    current context: pycuda would abort the process.
    """

    name: str
    """Name according to the driver, e.g. `Orin`."""
    arch: str
    """Architecture for which kernels are compiled: `sm_87`; `host` for the fake."""

    def active(self) -> AbstractContextManager[None]:
        """Make the context current on the calling thread inside the block."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Allocate uninitialised device memory; raises SlimdeployError if there is too little."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialised array in page-locked host memory, for asynchronous `upload` and `download`. It is
        freed with its last reference.
        """
        ...

    def stream(self) -> Stream:
        """A new stream that doesn't synchronise with the default stream."""
        ...

    def upload(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        """Queue a copy of a contiguous host array to the start of `buffer`."""
        ...

    def download(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        """Queue a copy from the start of `buffer` into a contiguous host array."""
        ...

    def event(self) -> Event: ...

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """GPU time between two recorded events, ms; waits for `end`."""
        ...

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record the work that `work` queues on `stream` as a graph, without running it. `work` must not
        allocate or wait.
        """
        ...

    def memory_info(self) -> MemoryInfo: ...

    def load_kernel(self, image: bytes, name: str) -> Any:
        """The function `name` of a compiled module (a cubin)."""
        ...

    def launch(self, kernel: Any, grid: Dim, block: Dim, parameters: np.ndarray, stream: Stream) -> None:
        """Queue a kernel whose only parameter is a struct: `parameters` has the struct's dtype (`align=True`)
        and shape ().
        """
        ...

    def close(self) -> None:
        """Release the primary context, in the thread that opened the device; raises SlimdeployError in
        another one. May be called more than once.
        """
        ...


IMPLEMENTATIONS = {
    "pycuda": "slimdeploy.toolchain.runtime.devices.pycuda",
    "cuda-python": "slimdeploy.toolchain.runtime.devices.cuda_python",
}
"""Library -> the module that implements `open_device(index)` with it, in order of preference."""


def open_device(index: int = 0, implementation: str = "auto") -> Device:
    """Open GPU `index` with pycuda or, if that isn't installed, cuda-python.

    Raises SlimdeployError if neither library is installed, or there is no driver or no such GPU.
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
        except ImportError as error:  # installed, but its driver library is missing
            raise SlimdeployError(f"{name} can't be loaded: {error}") from error
        return module.open_device(index)
    raise SlimdeployError(
        f"a CUDA device needs {' or '.join(names)}, which is not installed: pip install 'slimdeploy[cuda]'"
    )


def check_thread(opener: int) -> None:
    """Refuse to close a device in a thread other than `opener`, whose context can't be released from
    outside.
    """
    if threading.get_ident() != opener:
        raise SlimdeployError("a device must be closed in the thread that opened it")


def check_copy(array: np.ndarray, buffer: Buffer) -> None:
    """Refuse invalid copies: a strided array, or more bytes than the buffer has."""
    if not array.flags.c_contiguous:
        raise SlimdeployError(f"a copy needs a contiguous array, not strides {array.strides}")
    if array.nbytes > buffer.nbytes:
        raise SlimdeployError(f"a copy of {array.nbytes} bytes doesn't fit a buffer of {buffer.nbytes}")
