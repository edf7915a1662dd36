"""The session protocol of all runtimes, and the table of backends."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.file_kinds import CHECKPOINT, kind_of, refuse_other_kind
from slimdeploy.toolchain.models.model_info import ModelInfo


class Session(Protocol):
    """A loaded model. It may be closed more than once; a context manager that closes itself."""

    backend: str
    """Name of the runtime, e.g. `onnxruntime-cpu`."""
    precision: str
    """`fp32`, `fp16`, `int8` or `mixed`; torch also has `bf16`."""
    info: ModelInfo | None
    """The description in the file; None for a model not written by slimdeploy."""
    input_shape: tuple[int, int, int]
    """Required channels, height and width of an image."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Compute logits: (N, C, H, W) float32 → (N, classes) float32."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Session: ...

    def __exit__(self, *exception: object) -> None: ...


@dataclass(frozen=True)
class SessionOptions:
    """How to run a model. A backend ignores the options that don't apply to it."""

    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    threads: int | None = None
    """CPU threads; None: the library's default (all cores)."""
    spin: bool = True
    """onnxruntime: idle threads spin, waiting for work. Fastest if nothing else runs; in a process with other
    work they slow it down.
    """
    precision: str | None = None
    """Precision of torch: `fp32`, `fp16` or `bf16`; ONNX files and engines contain their own."""
    compiled: bool = False
    """torch.compile."""
    channels_last: bool = False
    """torch: NHWC memory layout."""
    cuda_graph: bool | None = None
    """Replay a CUDA graph for each input shape; None: the backend's default (TensorRT on, torch off)."""
    tf32: bool = False
    """Allow TF32 for FP32 matrix products on the GPU."""
    tensorrt: bool = False
    """onnxruntime: use the TensorRT provider before the CUDA one."""


# Backend -> (module with `open_session(path, options)`, file extensions that it opens).
BACKENDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("slimdeploy.toolchain.runtime.torch", (".safetensors",)),
    "onnxruntime": ("slimdeploy.toolchain.runtime.onnxruntime", (".onnx",)),
    "tensorrt": ("slimdeploy.toolchain.runtime.tensorrt", (".engine", ".plan")),
}

# Name -> (backend, its options): the ways to run a file that are measured side by side.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch-channels-last": ("torch", {"channels_last": True}),
    "torch-compiled": ("torch", {"compiled": True}),
    "torch-graph": ("torch", {"cuda_graph": True}),
    "onnxruntime-tensorrt": ("onnxruntime", {"tensorrt": True}),
    "tensorrt-no-graph": ("tensorrt", {"cuda_graph": False}),
}


def backend_for(path: Path, backend: str = "auto") -> str:
    """Name of the backend that opens `path`; raises SlimdeployError if there is none, or the requested one
    can't.
    """
    fitting = [name for name, (_, endings) in BACKENDS.items() if path.suffix in endings]
    if not fitting and kind_of(path) == CHECKPOINT:
        fitting = ["torch"]
    if backend == "auto":
        if not fitting:
            refuse_other_kind(path, "a model")
            known = ", ".join(sorted(ending for _, endings in BACKENDS.values() for ending in endings))
            raise SlimdeployError(
                f"{path}: no backend opens {repr(path.suffix) if path.suffix else 'files with no ending'}; "
                f"known: {known}"
            )
        return fitting[0]
    backend = VARIANTS[backend][0] if backend in VARIANTS else backend
    if backend not in BACKENDS:
        raise unknown("backend", backend, [*BACKENDS, *VARIANTS])
    if backend not in fitting:
        raise SlimdeployError(f"{path}: {backend} opens {' and '.join(BACKENDS[backend][1])} files")
    return backend


def open_session(path: Path, backend: str = "auto", options: SessionOptions | None = None) -> Session:
    """Load the model at `path` with a backend or a variant of one.

    Raises SlimdeployError if it is missing, unreadable or of another type.
    """
    if not path.is_file():
        raise artifacts.missing(path, "model")
    options = options or SessionOptions()
    if backend in VARIANTS:
        options = replace(options, **VARIANTS[backend][1])
    module = importlib.import_module(BACKENDS[backend_for(path, backend)][0])
    return module.open_session(path, options)
