"""A `tensorrt` that refuses every name that its version doesn't have, and computes with onnxruntime.

A plan of it is the ONNX file with its profile and the version: enough to build, save, load, run and audit an
engine on a `FakeDevice` with real numbers. What each version holds is read from `export/tensorrt_api/`, the
names and parameters of NVIDIA's own bindings.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

from slimdeploy.tests.toolchain import tensorrt_fake_build as build
from slimdeploy.tests.toolchain import tensorrt_fake_run as run
from slimdeploy.tests.toolchain.tensorrt_fake_base import HostMemory, Restricted, Tensor
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice

FOLDER = Path(__file__).parent / "export" / "tensorrt_api"
VERSIONS = sorted((path.stem for path in FOLDER.glob("*.json")), key=lambda v: [int(n) for n in v.split(".")])


class FakeTensorrt:
    """The module. `used` collects `Class.member` of everything touched."""

    def __init__(self, version: str, device: FakeDevice | None = None) -> None:
        self.__version__ = version
        self._api = json.loads((FOLDER / f"{version}.json").read_text())
        self._device = device or FakeDevice()
        self._used: set[str] = set()
        self._fails_strongly_typed = self._loses_int8 = False
        self._dla_cores = 0
        self._cuda_fails = False
        self._classes = {name: self._make(name, members) for name, members in self._api.items()}

    def __getattr__(self, name: str) -> Any:
        if name in self._classes:
            self._used.add(name)
            return self._classes[name]
        raise AttributeError(f"TensorRT {self.__version__} has no {name} that this fake knows")

    def _initialise_cuda(self, logger: Any) -> None:
        if self._cuda_fails:
            logger.log(Logger.ERROR, "Error Code 6: CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    @property
    def _major(self) -> int:
        return int(self.__version__.split(".")[0])

    def _make(self, name: str, members: Any) -> Any:
        if isinstance(members, list):
            values = enum.IntEnum(name, {member: i for i, member in enumerate(members)})
            return _Watched(values, f"{name}", self._used)
        return type(name, (BEHAVIOUR[name],), {"_trt": self, "_members": members, "_name": name})


class _Watched:
    """An enum that notes which of its members are asked for."""

    def __init__(self, values: Any, name: str, used: set[str]) -> None:
        self._values, self._name, self._used = values, name, used

    def __getattr__(self, member: str) -> Any:
        value = getattr(self._values, member)
        self._used.add(f"{self._name}.{member}")
        return value


class Logger:
    ERROR, INTERNAL_ERROR = "error", "internal error"

    def __init__(self) -> None:
        pass


class ProgressMonitor:
    def __init__(self) -> None:
        pass


class Profiler:
    def __init__(self) -> None:
        pass


BEHAVIOUR: dict[str, type] = {
    "Builder": build.Builder,
    "EngineInspector": run.EngineInspector,
    "IBuilderConfig": build.BuilderConfig,
    "ICudaEngine": run.CudaEngine,
    "IExecutionContext": run.ExecutionContext,
    "IHostMemory": HostMemory,
    "ILogger": Logger,
    "INetworkDefinition": build.NetworkDefinition,
    "IOptimizationProfile": build.OptimizationProfile,
    "IProfiler": Profiler,
    "IProgressMonitor": ProgressMonitor,
    "ITensor": Tensor,
    "ITimingCache": build.TimingCache,
    "OnnxParser": build.OnnxParser,
    "ParserError": Restricted,
    "Runtime": run.Runtime,
}
