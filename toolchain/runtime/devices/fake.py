"""`Device` in host memory, for tests: it computes like a GPU and raises errors for misuse.

Work runs immediately, in order; during a capture it is recorded instead. A thread without a current context
is refused. Kernels are the same sources compiled for the host (kernels/compile.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

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

Work = Callable[[], object]

ALIGNMENT = 256
"""Bytes: cuMemAlloc's guarantee."""
UNINITIALISED = 0xA5
MAX_GRID, MAX_BLOCK = ((1 << 31) - 1, 65535, 65535), 1024
"""Limits of a launch in the CUDA programming guide: blocks along x, y and z, and threads of a block."""


class FakeBuffer:
    def __init__(self, device: FakeDevice, nbytes: int) -> None:
        self._device = device
        memory = np.full(nbytes + ALIGNMENT, UNINITIALISED, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self.memory: np.ndarray | None = memory[start : start + nbytes]
        self.address = self.memory.ctypes.data
        self.nbytes = nbytes

    def free(self) -> None:
        if self.memory is not None:
            self._device.check_current()
            self._device.buffers.remove(self)
        self.memory = None


class FakeStream:
    def __init__(self, device: FakeDevice, handle: int) -> None:
        self._device = device
        self.handle = handle

    def synchronize(self) -> None:
        self._device.check_current()
        if self._device.recording is not None:
            raise SlimdeployError("a stream can't be waited for while it is captured")


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.at: float | None = None

    def record(self, stream: Stream) -> None:
        def now() -> None:
            self.at = time.perf_counter()

        self._device.enqueue(stream.handle, now)

    def synchronize(self) -> None:
        if self.at is None:
            raise SlimdeployError("the event was never recorded")


class FakeGraph:
    def __init__(self, device: FakeDevice, work: list[Work]) -> None:
        self._device = device
        self._work: list[Work] | None = work

    def launch(self, stream: Stream) -> None:
        if self._work is None:
            raise SlimdeployError("the CUDA graph is freed")
        for step in self._work:
            self._device.enqueue(stream.handle, step)

    def free(self) -> None:
        self._work = None


class FakeDevice:
    """A device in host memory: `Buffer.address` can be read with ctypes.

    For assertions: `buffers` are those not yet freed, `allocations` counts all allocations, pinned arrays
    included, and `queued` counts the queued work.
    """

    name = "fake"
    arch = "host"

    def __init__(self, total_memory: int = 1 << 30) -> None:
        self.total_memory = total_memory
        self.buffers: list[FakeBuffer] = []
        self.allocations = 0
        self.queued = 0
        self.recording: list[Work] | None = None
        self.closed = False
        self._opener = threading.get_ident()
        self._current = threading.local()
        self._captured = 0
        self._streams = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        if self.closed:
            raise SlimdeployError("the device is closed")
        self._current.depth = getattr(self._current, "depth", 0) + 1
        try:
            yield
        finally:
            self._current.depth -= 1

    def check_current(self) -> None:
        """The driver's error on a thread without a context."""
        if threading.get_ident() != self._opener and not getattr(self._current, "depth", 0):
            raise SlimdeployError("invalid device context")

    def allocate(self, nbytes: int) -> FakeBuffer:
        self._check_allocation()
        free, total = self.memory_info()
        if nbytes > free:
            raise SlimdeployError(
                f"{self.name}: can't allocate {nbytes / 2**20:.0f} MiB, "
                f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB are free"
            )
        buffer = FakeBuffer(self, nbytes)
        self.buffers.append(buffer)
        return buffer

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        self._check_allocation()
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8).fill(UNINITIALISED)
        return array

    def stream(self) -> FakeStream:
        self._check_open()
        self._streams += 1
        return FakeStream(self, self._streams)

    def upload(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        check_copy(array, buffer)
        self.enqueue(stream.handle, lambda: ctypes.memmove(_address(buffer), array.ctypes.data, array.nbytes))

    def download(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        check_copy(array, buffer)
        self.enqueue(stream.handle, lambda: ctypes.memmove(array.ctypes.data, _address(buffer), array.nbytes))

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        start.synchronize()
        end.synchronize()
        return (end.at - start.at) * 1000  # type: ignore[attr-defined]

    def capture(self, stream: Stream, work: Callable[[], None]) -> FakeGraph:
        self._check_open()
        if self.recording is not None:
            raise SlimdeployError("a capture is under way")
        self.recording, self._captured = [], stream.handle
        try:
            work()
            return FakeGraph(self, self.recording)
        finally:
            self.recording = None

    def enqueue(self, handle: int, work: Work) -> None:
        """Run `work` on the stream with this handle: now, or when the captured graph is launched. Fakes of
        other libraries call it to take part in captures.
        """
        self._check_open()
        if not 1 <= handle <= self._streams:
            raise SlimdeployError(f"no stream {handle}")
        self.queued += 1
        if self.recording is None:
            work()
        elif handle == self._captured:
            self.recording.append(work)
        else:
            raise SlimdeployError(f"stream {handle} gets work while stream {self._captured} is captured")

    def memory_info(self) -> MemoryInfo:
        used = sum(buffer.nbytes for buffer in self.buffers)
        return MemoryInfo(self.total_memory - used, self.total_memory)

    def load_kernel(self, image: bytes, name: str) -> Any:
        """A function of a shared library built for the host by kernels/compile.py."""
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(image)
            file.flush()
            library = ctypes.CDLL(file.name)
        function = library[f"launch_{name}"]
        function.argtypes = [ctypes.c_uint * 3, ctypes.c_uint * 3, ctypes.c_void_p]
        function.restype = ctypes.c_char_p
        return function, library[f"size_{name}"]()

    def launch(self, kernel: Any, grid: Dim, block: Dim, parameters: np.ndarray, stream: Stream) -> None:
        function, size = kernel
        if parameters.nbytes != size:
            raise SlimdeployError(f"the kernel's parameters have {size} bytes, not {parameters.nbytes}")
        within = all(1 <= blocks <= most for blocks, most in zip(grid, MAX_GRID, strict=True))
        if not within or not 1 <= math.prod(block) <= MAX_BLOCK:
            raise SlimdeployError(f"a grid of {grid} blocks of {block} threads can't be launched")
        kept = parameters.copy()  # the driver copies the parameters when the launch is queued

        def run() -> None:
            error = function((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), kept.ctypes.data)
            if error:
                raise SlimdeployError(error.decode())

        self.enqueue(stream.handle, run)

    def close(self) -> None:
        if not self.closed:
            check_thread(self._opener)
        self.closed = True

    def _check_open(self) -> None:
        if self.closed:
            raise SlimdeployError("the device is closed")
        self.check_current()

    def _check_allocation(self) -> None:
        self._check_open()
        if self.recording is not None:
            raise SlimdeployError("memory can't be allocated during a capture")
        self.allocations += 1


def _address(buffer: Buffer) -> int:
    if buffer.memory is None:  # type: ignore[attr-defined]
        raise SlimdeployError("the buffer is freed")
    return buffer.address
