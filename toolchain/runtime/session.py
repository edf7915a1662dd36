"""The protocol of everything that can run a model, and the table of backends that do."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.model_info import ModelInfo


class Session(Protocol):
    """A loaded model. Safe to close twice; a context manager that closes itself."""

    backend: str
    """What computes it, such as `onnxruntime-cpu`."""
    precision: str
    """`fp32`, `fp16`, `int8` or `mixed`."""
    info: ModelInfo | None
    """What the file says of itself; None for a model that slimdeploy didn't write."""
    input_shape: tuple[int, int, int]
    """Channels, height and width that one image must have."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Compute logits: (N, C, H, W) float32 → (N, classes) float32."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Session: ...

    def __exit__(self, *exception: object) -> None: ...


@dataclass(frozen=True)
class SessionOptions:
    """How to run a model. `threads` is for the CPU; None leaves the library's default (all cores)."""

    device: str = "auto"
    threads: int | None = None


# Backend -> (module with `open_session(path, options)`, file endings that it opens).
BACKENDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("slimdeploy.toolchain.runtime.torch", (".safetensors",)),
    "onnxruntime": ("slimdeploy.toolchain.runtime.onnxruntime", (".onnx",)),
}


def backend_for(path: Path, backend: str = "auto") -> str:
    """Name of the backend that opens `path`; raises SlimdeployError where none does, or the one asked for
    can't.
    """
    fitting = [name for name, (_, endings) in BACKENDS.items() if path.suffix in endings]
    if backend == "auto":
        if not fitting:
            known = ", ".join(sorted(ending for _, endings in BACKENDS.values() for ending in endings))
            raise SlimdeployError(
                f"{path}: no backend opens {path.suffix or 'a file with no ending'!r}; known: {known}"
            )
        return fitting[0]
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if backend not in fitting:
        raise SlimdeployError(f"{path}: {backend} opens {' and '.join(BACKENDS[backend][1])} files")
    return backend


def open_session(path: Path, backend: str = "auto", options: SessionOptions | None = None) -> Session:
    """Load the model at `path`. Raises SlimdeployError where it is missing, unreadable or of another kind."""
    if not path.is_file():
        raise SlimdeployError(f"no model at {path}")
    module = importlib.import_module(BACKENDS[backend_for(path, backend)][0])
    return module.open_session(path, options or SessionOptions())
