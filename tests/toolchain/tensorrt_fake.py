"""A `tensorrt` that refuses every name that its version doesn't have, and computes with onnxruntime.

A plan of it is the ONNX file with its profile and the version: enough to build, save, load, run and audit an
engine on a `FakeDevice` with real numbers. What each version holds is read from `export/tensorrt_api/`, the
names and parameters of NVIDIA's own bindings.
"""

from __future__ import annotations

import ctypes
import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from slimdeploy.toolchain.runtime.devices.fake import FakeDevice
from slimdeploy.toolchain.runtime.onnx_file import parse_onnx

FOLDER = Path(__file__).parent / "export" / "tensorrt_api"
VERSIONS = sorted((path.stem for path in FOLDER.glob("*.json")), key=lambda v: [int(n) for n in v.split(".")])
NUMPY_TYPES = {"FLOAT": np.float32, "HALF": np.float16}


class FakeTensorrt:
    """The module. `used` collects `Class.member` of everything touched."""

    def __init__(self, version: str, device: FakeDevice | None = None) -> None:
        self.__version__ = version
        self._api = json.loads((FOLDER / f"{version}.json").read_text())
        self._device = device or FakeDevice()
        self._used: set[str] = set()
        self._fails_strongly_typed = self._loses_int8 = False
        self._dla_cores = 0
        self._classes = {name: self._make(name, members) for name, members in self._api.items()}

    def __getattr__(self, name: str) -> Any:
        if name in self._classes:
            self._used.add(name)
            return self._classes[name]
        raise AttributeError(f"TensorRT {self.__version__} has no {name} that this fake knows")

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


class Restricted:
    """Base of the fake classes: members and calls that the version doesn't have are refused."""

    _trt: FakeTensorrt
    _members: dict[str, list[list[str]] | None]
    _name: str

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        self._note(name)
        value = object.__getattribute__(self, name)
        overloads = self._members[name]
        return _checked(value, f"{self._name}.{name}", overloads) if overloads and callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self._note(name)
        object.__setattr__(self, name, value)

    def _note(self, name: str) -> None:
        if name not in self._members:
            raise AttributeError(f"TensorRT {self._trt.__version__} has no {self._name}.{name}")
        self._trt._used.add(f"{self._name}.{name}")


def _checked(method: Any, name: str, overloads: list[list[str]]) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        assert any(_fits(parameters, arguments, named) for parameters in overloads), (
            f"{name} takes {overloads}, not {len(arguments)} arguments and {list(named)}"
        )
        return method(*arguments, **named)

    return call


def _fits(parameters: list[str], arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    names = [parameter.rstrip("=") for parameter in parameters]
    given = [*names[: len(arguments)], *named]
    needed = [parameter for parameter in parameters if not parameter.endswith("=")]
    return len(arguments) <= len(names) and set(needed) <= set(given) <= set(names)


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


class HostMemory(Restricted):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content

    @property
    def nbytes(self) -> int:
        return len(self._content)


class Builder(Restricted):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property
    def num_DLA_cores(self) -> int:
        return self._trt._dla_cores

    def create_network(self, flags: int = 0) -> Any:
        known = self._trt._api["NetworkDefinitionCreationFlag"]
        names = {name for i, name in enumerate(known) if flags >> i & 1}
        assert flags < 1 << len(known), "a bit that no flag has"
        assert self._trt._major > 8 or "EXPLICIT_BATCH" in names, "TensorRT 8 needs EXPLICIT_BATCH"
        network = _new(self._trt, "INetworkDefinition")
        network._strong = "STRONGLY_TYPED" in names or self._trt._major >= 11
        return network

    def create_builder_config(self) -> Any:
        return _new(self._trt, "IBuilderConfig")

    def create_optimization_profile(self) -> Any:
        return _new(self._trt, "IOptimizationProfile")

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if network._strong and (self._trt._fails_strongly_typed or config._flags & {"FP16", "INT8"}):
            self._logger.log("error", "Error Code 9: the strongly typed network can't be built")
            return None
        if not network._strong:
            asked = {"INT8": network._facts.quantised, "FP16": network._facts.half}
            missing = {flag for flag, needed in asked.items() if needed} - config._flags
            if missing:
                self._logger.log("error", f"Error Code 4: BuilderFlag {sorted(missing)} is needed")
                return None
        if network.get_input(0).shape[0] < 0 and not config._profiles:
            self._logger.log("error", "Error Code 4: dynamic shapes without an optimization profile")
            return None
        monitor = getattr(config, "_monitor", None)
        if monitor:
            monitor.phase_start("Building engine", None, 2)
            if not (
                monitor.step_complete("Building engine", 0) and monitor.step_complete("Building engine", 1)
            ):
                return None
            monitor.phase_finish("Building engine")
        config._cache._content += b"timed;"
        header = {
            "version": self._trt.__version__, "profile": config._profiles[0] if config._profiles else None,
            "detailed": config._detailed, "flags": sorted(config._flags), "strong": network._strong,
        }  # fmt: skip
        return _new(self._trt, "IHostMemory", json.dumps(header).encode() + b"\0" + network._content)


class NetworkDefinition(Restricted):
    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_input(self, index: int) -> Any:
        return _new(self._trt, "ITensor", self._model.graph.input[index])


class Tensor(Restricted):
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value

    @property
    def name(self) -> str:
        return self._value.name

    @property
    def shape(self) -> tuple[int, ...]:
        dims = self._value.type.tensor_type.shape.dim
        return tuple(-1 if dim.dim_param else dim.dim_value for dim in dims)


class OnnxParser(Restricted):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self._errors: list[str] = []

    def parse_from_file(self, model: str) -> bool:
        content = Path(model).read_bytes()
        try:
            self._network._model = onnx.load_from_string(content)
            self._network._content = content
            self._network._facts = parse_onnx(content, source=model)
        except Exception as error:
            self._errors.append(f"In node -1 (parse): {error}")
            return False
        unknown = {node.op_type for node in self._network._model.graph.node} & {"NonMaxSuppression"}
        self._errors += [f"In node 0 with name: and operator: {name}: no importer" for name in unknown]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return self._errors[index]


class OptimizationProfile(Restricted):
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes = [list(min), list(opt), list(max)]


class TimingCache(Restricted):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Any:
        return _new(self._trt, "IHostMemory", self._content)


DAMAGED, MISMATCHED = b"not a timing cache", b"of another GPU"


class BuilderConfig(Restricted):
    def __init__(self) -> None:
        self._flags = {"TF32"}  # on by default in every version
        self._profiles: list[Any] = []
        self._detailed = False
        self._cache = _new(self._trt, "ITimingCache", b"")

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._workspace = (pool.name, pool_size)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        if serialized_timing_cache == DAMAGED:
            return None
        return _new(self._trt, "ITimingCache", serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._content == MISMATCHED and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    profiling_verbosity = property(None, lambda self, v: setattr(self, "_detailed", v.name == "DETAILED"))
    progress_monitor = property(None, lambda self, monitor: setattr(self, "_monitor", monitor))
    builder_optimization_level = property(None, lambda self, level: setattr(self, "_level", level))
    hardware_compatibility_level = property(None, lambda self, level: setattr(self, "_hardware", level.name))
    default_device_type = property(None, lambda self, kind: setattr(self, "_device_type", kind.name))
    DLA_core = property(None, lambda self, core: setattr(self, "_dla", core))


class Runtime(Restricted):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    engine_host_code_allowed = property(None, lambda self, allowed: setattr(self, "_host_code", allowed))

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        header, _, model = serialized_engine.partition(b"\0")
        try:
            described = json.loads(header)
        except ValueError:
            self._logger.log("error", "Error Code 1: Serialization (magicTag assertion failed)")
            return None
        flags = set(described["flags"])
        if described["version"] != self._trt.__version__ and "VERSION_COMPATIBLE" not in flags:
            self._logger.log("error", "Error Code 6: version tag mismatch")
            return None
        return _new(self._trt, "ICudaEngine", described, model)


REFORMAT, REFORMAT_MS = "Reformatting CopyNode for Input Tensor 0 to conv1", 0.25


def layer_ms(weights: list[int]) -> float:
    """What a layer of convolutions with so many weights each takes on this fake."""
    return 0.002 + 1e-7 * sum(weights)


def _layer_name(nodes: list[onnx.NodeProto]) -> str:
    return " || ".join(node.name for node in nodes)


class CudaEngine(Restricted):
    def __init__(self, described: dict[str, Any], model: bytes) -> None:
        self._described, self._model = described, onnx.load_from_string(model)
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._asked = parse_onnx(model, source="plan").layers

    def _tensors(self) -> list[onnx.ValueInfoProto]:
        return [*self._model.graph.input, *self._model.graph.output]

    def _fused(self) -> list[list[onnx.NodeProto]]:
        """The nodes of each layer: a weighted one each, but 1×1 convolutions of one input and stride
        together, as TensorRT computes them.
        """
        groups: dict[Any, list[onnx.NodeProto]] = {}
        for node in self._model.graph.node:
            if node.op_type in ("Conv", "Gemm"):
                told = {a.name: list(a.ints) for a in node.attribute}
                alike = (node.input[0], *told["strides"]) if told.get("kernel_shape") == [1, 1] else node.name
                groups.setdefault(alike, []).append(node)
        return list(groups.values())

    def _layer_times(self) -> list[tuple[str, float]]:
        """Layers and their ms, as `layer_ms` says it; a reformat runs twice under one name."""
        weights = {w.name: np.prod(w.dims) for w in self._model.graph.initializer}
        inputs = {node.output[0]: node.input[0] for node in self._model.graph.node}

        def count(name: str) -> int:
            while name not in weights:  # behind Q/DQ
                name = inputs[name]
            return int(weights[name])

        times = [
            (_layer_name(group), layer_ms([count(n.input[1]) for n in group])) for group in self._fused()
        ]
        return [(REFORMAT, REFORMAT_MS), *times, (REFORMAT, REFORMAT_MS)]

    def _tensor(self, name: str) -> onnx.ValueInfoProto:
        return next(tensor for tensor in self._tensors() if tensor.name == name)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors())

    def get_tensor_name(self, index: int) -> str:
        return self._tensors()[index].name

    def get_tensor_mode(self, name: str) -> Any:
        inputs = [tensor.name for tensor in self._model.graph.input]
        return self._trt.TensorIOMode.INPUT if name in inputs else self._trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _new(self._trt, "ITensor", self._tensor(name)).shape

    def get_tensor_dtype(self, name: str) -> Any:
        half = self._tensor(name).type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        return self._trt.DataType.HALF if half else self._trt.DataType.FLOAT

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        assert profile_index == 0
        return self._described["profile"]

    @property
    def device_memory_size(self) -> int:
        return 4096

    @property
    def device_memory_size_v2(self) -> int:
        return 4096

    def create_execution_context(self, strategy: Any = None) -> Any:
        return _new(self._trt, "IExecutionContext", self, strategy is None or strategy.name != "USER_MANAGED")

    def create_execution_context_without_device_memory(self) -> Any:
        return _new(self._trt, "IExecutionContext", self, False)

    def create_engine_inspector(self) -> Any:
        return _new(self._trt, "EngineInspector", self)


class ExecutionContext(Restricted):
    def __init__(self, engine: Any, has_memory: bool) -> None:
        self._engine, self._has_memory = engine, has_memory
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] | None = None
        self._warm = False
        self._profiler: Any = None

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape or self._engine.get_tensor_shape(name)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fixed = self._engine.get_tensor_shape(name)
        least, _, greatest = self._engine.get_tensor_profile_shape(name, 0) or [fixed] * 3
        self._shape, self._warm = tuple(shape), False
        return all(low <= n <= high for low, n, high in zip(least, shape, greatest, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self._engine.device_memory_size_v2
        self._has_memory = True

    profiler = property(None, lambda self, profiler: setattr(self, "_profiler", profiler))
    device_memory = property(None, lambda self, memory: setattr(self, "_has_memory", memory % 256 == 0))

    def execute_async_v3(self, stream_handle: int) -> bool:
        device, session = self._trt._device, self._engine._session
        if not self._has_memory:
            return False
        assert device.recording is None or self._warm, (
            "the first run after a change of shape can't be captured"
        )
        self._warm = True
        (image,), (logits,) = session.get_inputs(), session.get_outputs()
        shape = self.get_tensor_shape(image.name)

        def work() -> None:
            kind = NUMPY_TYPES[self._engine.get_tensor_dtype(image.name).name]
            count = int(np.prod(shape))
            memory = (ctypes.c_byte * (count * np.dtype(kind).itemsize)).from_address(
                self._addresses[image.name]
            )
            images = np.frombuffer(memory, kind).reshape(shape)
            result = np.ascontiguousarray(session.run([logits.name], {image.name: images})[0])
            ctypes.memmove(self._addresses[logits.name], result.ctypes.data, result.nbytes)

        device.enqueue(stream_handle, work)
        if self._profiler:
            for name, ms in self._engine._layer_times():
                self._profiler.report_layer_time(name, ms)
        return True


class EngineInspector(Restricted):
    def __init__(self, engine: Any) -> None:
        self._engine, self._context = engine, None

    execution_context = property(None, lambda self, context: setattr(self, "_context", context))

    def get_engine_information(self, format: Any) -> str:
        """What the version's inspector would say: the layers, as the ONNX file asks for them."""
        assert format.name == "JSON"
        io = [tensor.name for tensor in self._engine._tensors()]
        groups = self._engine._fused()
        layers: list[Any] = [self._layer(group) for group in groups]
        if not self._engine._described["detailed"]:
            layers = [layer["Name"] for layer in layers]
        old = self._trt._major <= 10
        return json.dumps(
            {"Layers": layers, **({"Bindings": io} if old else {"I/O Tensors": [{"Name": n} for n in io]})}
        )

    def _layer(self, nodes: list[onnx.NodeProto]) -> dict[str, Any]:
        node = nodes[0]
        asked = self._engine._asked[node.name]
        realised = "fp32" if asked == "int8" and self._trt._loses_int8 else asked
        name = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[realised]
        # Of dynamic shapes the formats are only known in a context that has them.
        known = self._context is not None and -1 not in self._context.get_tensor_shape("images")
        typed: dict[str, str] = {}
        if known:
            typed = (
                {"Format/Datatype": name}
                if self._trt._major <= 10
                else {"Format": "linear", "Datatype": name}
            )
        return {
            "Name": _layer_name(nodes), "LayerType": "CaskConvolution",
            "Inputs": [{"Name": node.input[0], **typed}], "Outputs": [{"Name": node.output[0], **typed}],
            "Metadata": "\x1e".join(f"[ONNX Layer: {node.name}]" for node in nodes),
        }  # fmt: skip


BEHAVIOUR: dict[str, type] = {
    "Builder": Builder,
    "EngineInspector": EngineInspector,
    "IBuilderConfig": BuilderConfig,
    "ICudaEngine": CudaEngine,
    "IExecutionContext": ExecutionContext,
    "IHostMemory": HostMemory,
    "ILogger": Logger,
    "INetworkDefinition": NetworkDefinition,
    "IOptimizationProfile": OptimizationProfile,
    "IProfiler": Profiler,
    "IProgressMonitor": ProgressMonitor,
    "ITensor": Tensor,
    "ITimingCache": TimingCache,
    "OnnxParser": OnnxParser,
    "ParserError": Restricted,
    "Runtime": Runtime,
}


def _new(trt: FakeTensorrt, name: str, *arguments: Any) -> Any:
    """An object that TensorRT itself makes: not a use of the class by name."""
    return trt._classes[name](*arguments)
