"""pycuda.driver 2026.1 as far as contexts go (src/cpp/cuda.hpp): each thread has a stack of them, work needs
one on it, and a thread that ends with one aborts the process.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import numpy as np


class Error(Exception):
    pass


class LogicError(Error):
    pass


class MemoryError(Error):
    pass


class _Stack(list):
    def __del__(self) -> None:
        if self:
            os.write(2, b"PyCUDA ERROR: The context stack was not empty upon module cleanup.\n")
            os.abort()


class _Thread(threading.local):
    def __init__(self) -> None:
        self.stack = _Stack()


_thread = _Thread()


def _current() -> Context:
    if not _thread.stack:
        raise LogicError("invalid device context")
    return _thread.stack[-1]


def init() -> None:
    pass


class Context:
    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def push(self) -> None:
        _thread.stack.append(self)

    @staticmethod
    def pop() -> None:
        if not _thread.stack:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        _thread.stack.pop()


class Device:
    def __init__(self, index: int) -> None:
        if index:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    def name(self) -> str:
        return "model"

    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    def retain_primary_context(self) -> Context:
        return Context()


class _OfContext:
    """What is freed in its context only, or in the thread of that."""

    def __init__(self, *_: Any) -> None:
        self._context = _current()

    def __del__(self) -> None:
        context = getattr(self, "_context", None)
        here = context is None or context in _thread.stack or threading.get_ident() == context.thread
        if not here:
            sys.stderr.write(f"UserWarning: {type(self).__name__} in out-of-thread context\n")


class Stream(_OfContext):
    handle = 1

    def synchronize(self) -> None:
        _current()


class Event(_OfContext):
    def record(self, stream: Stream) -> None:
        _current()

    def synchronize(self) -> None:
        _current()


class DeviceAllocation(_OfContext):
    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.memory = np.empty(nbytes, np.uint8)
        _memory[self.memory.ctypes.data] = self.memory

    def __int__(self) -> int:
        return self.memory.ctypes.data

    def free(self) -> None:
        _current()
        del _memory[int(self)]


_memory: dict[int, np.ndarray] = {}


def mem_alloc(nbytes: int) -> DeviceAllocation:
    return DeviceAllocation(nbytes)


def mem_get_info() -> tuple[int, int]:
    _current()
    return 1 << 30, 1 << 30


def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    _current()
    return np.empty(shape, dtype)


def memcpy_htod_async(target: int, source: np.ndarray, stream: Stream) -> None:
    _current()
    _memory[target][: source.nbytes] = source.reshape(-1).view(np.uint8)


def memcpy_dtoh_async(target: np.ndarray, source: int, stream: Stream) -> None:
    _current()
    target.reshape(-1).view(np.uint8)[:] = _memory[source][: target.nbytes]
