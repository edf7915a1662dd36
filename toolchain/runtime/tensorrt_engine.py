"""Load a plan as a TensorRT engine, and read its tensors and its memory needs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.capabilities import Capabilities
from slimdeploy.toolchain.runtime.tensorrt_callbacks import error_log, start


def deserialize(trt: ModuleType, plan: bytes, *, host_code: bool) -> Any:
    """Deserialise a plan; raises SlimdeployError with TensorRT's message, CannotStart if it can load none.

    `host_code` allows the plan to contain its own runtime library, as version-compatible plans do.
    """
    log = error_log(trt)
    runtime = start(trt.Runtime, log)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise SlimdeployError(f"TensorRT {trt.__version__} can't load it ({log.last_error()})")
    return engine


def single_tensor(trt: ModuleType, engine: Any, mode: str, dimensions: int, path: Path) -> str:
    """Name of the engine's only input or output, which must have `dimensions` dimensions."""
    wanted = getattr(trt.TensorIOMode, mode)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    names = [name for name in names if engine.get_tensor_mode(name) == wanted]
    if len(names) != 1 or len(engine.get_tensor_shape(names[0])) != dimensions:
        raise SlimdeployError(f"{path}: not an image classifier (one 4-D input, one 2-D output)")
    return names[0]


def activation_bytes(able: Capabilities, engine: Any) -> int:
    """Bytes of the activations at the maximum batch size."""
    return int(engine.device_memory_size_v2 if able.sized_device_memory else engine.device_memory_size)
