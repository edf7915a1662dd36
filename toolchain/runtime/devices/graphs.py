"""CUDA graphs through the driver library: pycuda has none, and cuda-python's functions differ between
versions.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.device import Stream

THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile."""


class DriverGraph:
    """An instantiated graph (CUgraphExec)."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle: ctypes.c_void_p | None = handle

    def launch(self, stream: Stream) -> None:
        if self._handle is None:
            raise SlimdeployError("the CUDA graph is freed")
        _call("cuGraphLaunch", self._handle, ctypes.c_void_p(stream.handle))

    def free(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            _call("cuGraphExecDestroy", handle)


def capture(stream: Stream, work: Callable[[], None]) -> DriverGraph:
    """Record the work that `work` queues on `stream`. The stream can be used again, even if `work` raises."""
    queue, graph, instance = ctypes.c_void_p(stream.handle), ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuStreamBeginCapture_v2", queue, THREAD_LOCAL)
    try:
        work()
    except BaseException:
        _driver().cuStreamEndCapture(queue, ctypes.byref(graph))  # its error would only be a consequence
        if graph:
            _call("cuGraphDestroy", graph)
        raise
    _call("cuStreamEndCapture", queue, ctypes.byref(graph))
    try:
        _call("cuGraphInstantiateWithFlags", ctypes.byref(instance), graph, ctypes.c_ulonglong(0))
    finally:
        _call("cuGraphDestroy", graph)
    return DriverGraph(instance)


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise SlimdeployError("no NVIDIA driver here: libcuda.so.1 can't be loaded") from error


def _call(name: str, *arguments: object) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise SlimdeployError(f"{name}: {(text.value or b'unknown error').decode()} (CUDA error {status})")
