"""`Device` over NVIDIA's cuda-python (`cuda.bindings`), in the primary context."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cuda.bindings import driver

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

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING"""


class BindingsBuffer:
    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes

    def free(self) -> None:
        address, self.address = self.address, 0
        if address:
            _call(driver.cuMemFree, address)


class BindingsStream:
    def __init__(self) -> None:
        self.native = _call(driver.cuStreamCreate, NON_BLOCKING)
        self.handle = int(self.native)
        weakref.finalize(self, driver.cuStreamDestroy, self.native).atexit = False

    def synchronize(self) -> None:
        _call(driver.cuStreamSynchronize, self.native)


class BindingsEvent:
    def __init__(self) -> None:
        self.native = _call(driver.cuEventCreate, 0)
        weakref.finalize(self, driver.cuEventDestroy, self.native).atexit = False

    def record(self, stream: Stream) -> None:
        _call(driver.cuEventRecord, self.native, stream.handle)

    def synchronize(self) -> None:
        _call(driver.cuEventSynchronize, self.native)


class BindingsDevice:
    def __init__(self, device: Any) -> None:
        self._device: Any | None = device
        self._context = _call(driver.cuDevicePrimaryCtxRetain, device)
        _call(driver.cuCtxPushCurrent, self._context)
        self._opener = threading.get_ident()
        self.name = _call(driver.cuDeviceGetName, 256, device).split(b"\0")[0].decode()
        attribute = driver.CUdevice_attribute
        major = _call(
            driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device
        )
        minor = _call(
            driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device
        )
        self.arch = f"sm_{major}{minor}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        _call(driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            _call(driver.cuCtxPopCurrent)

    def allocate(self, nbytes: int) -> BindingsBuffer:
        status, address = driver.cuMemAlloc(max(nbytes, 1))
        if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            free, total = self.memory_info()
            raise SlimdeployError(
                f"{self.name}: can't allocate {nbytes / 2**20:.0f} MiB, "
                f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB are free"
            )
        _check(status, "cuMemAlloc")
        return BindingsBuffer(int(address), nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        address = int(_call(driver.cuMemHostAlloc, max(nbytes, 1), 0))
        memory = (ctypes.c_byte * max(nbytes, 1)).from_address(address)
        weakref.finalize(memory, driver.cuMemFreeHost, address).atexit = False
        return np.ndarray(shape, dtype, buffer=memory)

    def stream(self) -> BindingsStream:
        return BindingsStream()

    def upload(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        check_copy(array, buffer)
        _call(driver.cuMemcpyHtoDAsync, buffer.address, array.ctypes.data, array.nbytes, stream.handle)

    def download(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        check_copy(array, buffer)
        _call(driver.cuMemcpyDtoHAsync, array.ctypes.data, buffer.address, array.nbytes, stream.handle)

    def event(self) -> BindingsEvent:
        return BindingsEvent()

    def elapsed_ms(self, start: Event, end: Event) -> float:
        end.synchronize()
        return float(_call(driver.cuEventElapsedTime, start.native, end.native))  # type: ignore[attr-defined]

    def capture(self, stream: Stream, work: Callable[[], None]) -> graphs.DriverGraph:
        return graphs.capture(stream, work)

    def memory_info(self) -> MemoryInfo:
        return MemoryInfo(*(int(n) for n in _call(driver.cuMemGetInfo)))

    def load_kernel(self, image: bytes, name: str) -> Any:
        module = _call(driver.cuModuleLoadData, image)
        return _call(driver.cuModuleGetFunction, module, name.encode())

    def launch(self, kernel: Any, grid: Dim, block: Dim, parameters: np.ndarray, stream: Stream) -> None:
        pointers = np.array([parameters.ctypes.data], dtype=np.uintp)
        _call(driver.cuLaunchKernel, kernel, *grid, *block, 0, stream.handle, pointers.ctypes.data, 0)

    def close(self) -> None:
        if self._device is None:
            return
        check_thread(self._opener)
        device, self._device = self._device, None
        _call(driver.cuCtxPopCurrent)
        _call(driver.cuDevicePrimaryCtxRelease, device)


def open_device(index: int) -> BindingsDevice:
    """Open GPU `index`; SlimdeployError if there is no driver or no such GPU."""
    try:
        _call(driver.cuInit, 0)
    except SlimdeployError:
        raise
    except Exception as error:  # the bindings raise their own class if libcuda can't be loaded
        raise SlimdeployError("no NVIDIA driver here: libcuda can't be loaded") from error
    return BindingsDevice(_call(driver.cuDeviceGet, index))


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a driver function and return its results without the status: nothing, one value or a tuple."""
    status, *results = function(*arguments)
    _check(status, function.__name__)
    return results[0] if len(results) == 1 else tuple(results)


def _check(status: Any, what: str) -> None:
    if status != driver.CUresult.CUDA_SUCCESS:
        raise SlimdeployError(f"{what}: {status.name} (CUDA error {int(status)})")
