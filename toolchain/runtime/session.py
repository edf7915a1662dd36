"""The protocol of everything that can run a model, and the table of backends that do."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.file_kinds import CHECKPOINT, kind_of, refuse_other_kind
from slimdeploy.toolchain.models.model_info import ModelInfo


class Session(Protocol):
    """A loaded model. Safe to close twice; a context manager that closes itself."""

    backend: str
    """What computes it, such as `onnxruntime-cpu`."""
    precision: str
    """`fp32`, `fp16`, `int8` or `mixed`; torch also has `bf16`."""
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
    """How to run a model. What a backend has no use for, it leaves alone."""

    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    threads: int | None = None
    """CPU threads; None leaves the library's default (all cores)."""
    spin: bool = True
    """onnxruntime: idle threads look for work in a loop. Fastest where nothing else runs; in a process with
    other work they take its time.
    """
    precision: str | None = None
    """What torch computes in, `fp32`, `fp16` or `bf16`; ONNX files and engines carry their own."""
    compiled: bool = False
    """torch.compile."""
    channels_last: bool = False
    """torch: NHWC memory layout."""
    cuda_graph: bool | None = None
    """Replay a CUDA graph for each input shape; None is the backend's default (TensorRT on, torch off)."""
    tf32: bool = False
    """Let FP32 matrix products round their inputs to TF32 on the GPU."""
    tensorrt: bool = False
    """onnxruntime: the TensorRT provider in front of the CUDA one."""


# Backend -> (module with `open_session(path, options)`, file endings that it opens).
BACKENDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("slimdeploy.toolchain.runtime.torch", (".safetensors",)),
    "onnxruntime": ("slimdeploy.toolchain.runtime.onnxruntime", (".onnx",)),
    "tensorrt": ("slimdeploy.toolchain.runtime.tensorrt", (".engine", ".plan")),
}

# Name -> (backend, the options that it stands for): the ways to run one file that are measured side by side.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch-channels-last": ("torch", {"channels_last": True}),
    "torch-compiled": ("torch", {"compiled": True}),
    "torch-graph": ("torch", {"cuda_graph": True}),
    "onnxruntime-tensorrt": ("onnxruntime", {"tensorrt": True}),
    "tensorrt-no-graph": ("tensorrt", {"cuda_graph": False}),
}


def backend_for(path: Path, backend: str = "auto") -> str:
    """Name of the backend that opens `path`; raises SlimdeployError where none does, or the one asked for
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
    """Load the model at `path` with a backend, or a variant of one.

    Raises SlimdeployError where it is missing, unreadable or of another kind.
    """
    if not path.is_file():
        raise SlimdeployError(f"no model at {path}")
    options = options or SessionOptions()
    if backend in VARIANTS:
        options = replace(options, **VARIANTS[backend][1])
    module = importlib.import_module(BACKENDS[backend_for(path, backend)][0])
    return module.open_session(path, options)
