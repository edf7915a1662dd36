"""`Device` with pycuda, in the primary context, so that torch and TensorRT share its memory.

pycuda keeps a stack of contexts per thread and aborts the process if a thread ends with a context on it.
`pycuda.autoprimaryctx` is not used: it pushes the context on the importing thread and pops it only at exit.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pycuda.driver as driver

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.device import (
    Buffer,
    Dim,
    Event,
    MemoryInfo,
    Stream,
    check_copy,
    check_thread,
)
from slimdeploy.toolchain.runtime.devices import graphs


class PycudaBuffer:
    def __init__(self, allocation: driver.DeviceAllocation, nbytes: int) -> None:
        self._allocation: driver.DeviceAllocation | None = allocation
        self.address = int(allocation)
        self.nbytes = nbytes

    def free(self) -> None:
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.free()


class PycudaStream:
    def __init__(self) -> None:
        self.native = driver.Stream(1)  # CU_STREAM_NON_BLOCKING
        self.handle = int(self.native.handle)

    def synchronize(self) -> None:
        self.native.synchronize()


class PycudaEvent:
    def __init__(self) -> None:
        self.native = driver.Event()

    def record(self, stream: Stream) -> None:
        self.native.record(_native(stream))

    def synchronize(self) -> None:
        self.native.synchronize()


class PycudaDevice:
    def __init__(self, context: Any, device: Any) -> None:
        self._context = context
        context.push()
        self._opener = threading.get_ident()
        # At the latest when Python ends, in the main thread.
        self._leave = weakref.finalize(self, _pop, self._opener)
        self.name = device.name()
        major, minor = device.compute_capability()
        self.arch = f"sm_{major}{minor}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            driver.Context.pop()

    def allocate(self, nbytes: int) -> PycudaBuffer:
        try:
            return PycudaBuffer(driver.mem_alloc(max(nbytes, 1)), nbytes)
        except driver.MemoryError as error:
            free, total = self.memory_info()
            raise SlimdeployError(
                f"{self.name}: can't allocate {nbytes / 2**20:.0f} MiB, "
                f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB are free"
            ) from error

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return driver.pagelocked_empty(shape, dtype)

    def stream(self) -> PycudaStream:
        return PycudaStream()

    def upload(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        check_copy(array, buffer)
        driver.memcpy_htod_async(buffer.address, array, _native(stream))

    def download(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        check_copy(array, buffer)
        driver.memcpy_dtoh_async(array, buffer.address, _native(stream))

    def event(self) -> PycudaEvent:
        return PycudaEvent()

    def elapsed_ms(self, start: Event, end: Event) -> float:
        end.synchronize()
        return float(start.native.time_till(end.native))  # type: ignore[attr-defined]

    def capture(self, stream: Stream, work: Callable[[], None]) -> graphs.DriverGraph:
        return graphs.capture(stream, work)

    def memory_info(self) -> MemoryInfo:
        return MemoryInfo(*driver.mem_get_info())

    def load_kernel(self, image: bytes, name: str) -> Any:
        return driver.module_from_buffer(image).get_function(name)

    def launch(self, kernel: Any, grid: Dim, block: Dim, parameters: np.ndarray, stream: Stream) -> None:
        # Prepared calls don't cache their arguments; plain ones cache every argument tuple.
        kernel.prepare([f"{parameters.nbytes}s"])
        kernel.prepared_async_call(grid, block, _native(stream), parameters.tobytes())

    def close(self) -> None:
        if self._leave.alive:
            check_thread(self._opener)
            self._leave()


def open_device(index: int) -> PycudaDevice:
    """Open GPU `index`; SlimdeployError if there is none."""
    try:
        driver.init()
        device = driver.Device(index)
        return PycudaDevice(_primary_context(index), device)
    except (driver.Error, RuntimeError) as error:
        raise SlimdeployError(f"pycuda finds no GPU {index} here: {error}") from error


@functools.cache
def _primary_context(index: int) -> Any:
    """One object for the whole process: pycuda frees objects of another context only on its own thread."""
    return driver.Device(index).retain_primary_context()


def _pop(opener: int) -> None:
    if threading.get_ident() == opener:
        driver.Context.pop()


def _native(stream: Stream) -> Any:
    return stream.native  # type: ignore[attr-defined]
