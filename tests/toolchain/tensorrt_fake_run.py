"""The half of the fake TensorRT that runs plans, by onnxruntime on the device's memory, and inspects them."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime

from slimdeploy.tests.toolchain.tensorrt_fake_base import Restricted, new
from slimdeploy.toolchain.runtime.onnx_file import parse_onnx

NUMPY_TYPES = {"FLOAT": np.float32, "HALF": np.float16}


class Runtime(Restricted):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._trt._initialise_cuda(logger)

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
        return new(self._trt, "ICudaEngine", described, model)


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
        return new(self._trt, "ITensor", self._tensor(name)).shape

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
        return new(self._trt, "IExecutionContext", self, strategy is None or strategy.name != "USER_MANAGED")

    def create_execution_context_without_device_memory(self) -> Any:
        return new(self._trt, "IExecutionContext", self, False)

    def create_engine_inspector(self) -> Any:
        return new(self._trt, "EngineInspector", self)


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
