"""An ONNX image classifier, indexed for calibration: producer and consumers of each tensor, constants.

Models that can't be quantised are refused here, before any computation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimdeploy.toolchain.errors import SlimdeployError, shorten
from slimdeploy.toolchain.models.model_info import METADATA_KEY, ModelInfo
from slimdeploy.toolchain.runtime.onnx_file import read_onnx
from slimdeploy.toolchain.runtime.onnx_shapes import FUNCTIONS

LAYERS = ("Conv", "Gemm", "GlobalAveragePool", "AveragePool", "Add")
"""Operators that can run in INT8; each can be kept in float."""
CARRIERS = ("MaxPool", "GlobalMaxPool", "Flatten", "Pad", "Slice", "Reshape", "Transpose", "Expand")
"""Operators that only move values: their output has the range of their input."""
RECTIFIERS = ("Relu", "Clip")
"""Operators that are equivalent to the saturation of an unsigned integer."""
NOT_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softplus", "Sqrt")
"""Operators whose output can't be negative."""
COMPARISONS = ("Greater",)
"""Operators whose output is true or false."""
FLOAT = tuple(sorted((
    *COMPARISONS, *FUNCTIONS, "BatchNormalization", "Concat", "Div", "InstanceNormalization",
    "LayerNormalization", "MatMul", "Max", "Min", "Mul", "Pow", "ReduceL2", "ReduceMax", "ReduceMean", "Sub",
    "Where",
)))  # fmt: skip
"""Operators that run in float between the others."""
OPERATORS = (*LAYERS, *CARRIERS, *RECTIFIERS, *FLOAT)
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Classifier:
    """A float32 model with one image input, one logits output and only operators of OPERATORS."""

    model: onnx.ModelProto
    constants: dict[str, np.ndarray]
    producers: dict[str, onnx.NodeProto]
    """Tensor -> the node that produces it."""
    consumers: dict[str, list[onnx.NodeProto]]
    """Tensor -> the nodes that read it."""

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    @property
    def input(self) -> str:
        return self.model.graph.input[0].name

    @property
    def output(self) -> str:
        return self.model.graph.output[0].name

    @property
    def opset(self) -> int:
        return next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = (d.dim_value for d in _dimensions(self.model.graph.input[0])[1:])
        return channels, height, width

    @property
    def activations(self) -> list[str]:
        """Every tensor of numbers that isn't constant: the input, then the node outputs in order."""
        return [self.input, *(node.output[0] for node in self.nodes if node.op_type not in COMPARISONS)]

    def layers(self) -> list[str]:
        """Names of the nodes that quantisation changes, in order."""
        return [node.name for node in self.nodes if self.is_layer(node)]

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether `node` runs in INT8: one of LAYERS, except the addition of a constant."""
        return node.op_type in LAYERS and not (node.op_type == "Add" and len(self.read_by(node)) < 2)

    def read_by(self, node: onnx.NodeProto) -> list[str]:
        """The activations among the inputs of `node`."""
        return [name for name in node.input if name and name not in self.constants]

    def from_layer(self, tensor: str, float_layers: Set[str] = frozenset()) -> bool:
        """Whether `tensor` comes from a layer outside `float_layers`, perhaps through a rectifier or carrier:
        then it may exist in INT8.
        """
        node = self.producers.get(self.origin(tensor))
        while node is not None and node.op_type in RECTIFIERS:
            node = self.producers.get(self.origin(node.input[0]))
        return node is not None and self.is_layer(node) and node.name not in float_layers

    def concatenated(self, tensor: str) -> list[str]:
        """What a Concat joins to `tensor`, perhaps with carriers behind it; without one, `tensor` itself."""
        node = self.producers.get(self.origin(tensor))
        if node is None or node.op_type != "Concat":
            return [tensor]
        return [part for joined in self.read_by(node) for part in self.concatenated(joined)]

    def origin(self, tensor: str) -> str:
        """The tensor whose values `tensor` has: itself, or the input of the CARRIERS before it."""
        while (node := self.producers.get(tensor)) is not None and node.op_type in CARRIERS:
            tensor = node.input[0]
        return tensor

    def is_rectified(self, tensor: str) -> bool:
        """Whether `tensor` can't be negative: it comes from a ReLU or a gate, for example."""
        node = self.producers.get(self.origin(tensor))
        if node is None:
            return False
        if node.op_type in ("GlobalAveragePool", "AveragePool", "Concat"):
            return all(map(self.is_rectified, node.input))
        if node.op_type == "Clip":
            return bool(node.input[1]) and float(self.constants[node.input[1]]) >= 0
        return node.op_type in NOT_NEGATIVE


def read_classifier(path: Path) -> Classifier:
    """Read the ONNX file at `path`; raises SlimdeployError if it is missing, damaged or not a Classifier."""
    if not path.is_file():
        raise SlimdeployError(f"no model at {path}")
    read_onnx(path)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise their own classes
        raise SlimdeployError(f"{path} is not a valid ONNX file ({shorten(error)})") from error
    return classifier(model, source=str(path))


def classifier(model: onnx.ModelProto, *, source: str) -> Classifier:
    """Index `model`; raises SlimdeployError, naming `source`, where it isn't a float32 image classifier."""
    graph = model.graph
    _check_operators(model, source)
    inputs = [i for i in graph.input if i.name not in {c.name for c in graph.initializer}]
    sizes = [[d.dim_value for d in _dimensions(value)] for value in (*inputs, *graph.output)]
    if len(inputs) != 1 or len(graph.output) != 1 or [len(s) for s in sizes] != [4, 2]:
        raise SlimdeployError(f"{source}: not an image classifier (one 4-D input, one 2-D output)")
    if not all(sizes[0][1:]):
        raise SlimdeployError(f"{source}: the image size must be fixed, not {sizes[0][1:]}")
    if inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise SlimdeployError(f"{source}: its input is not float32: calibrate a float32 export")
    constants = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    if any(values.dtype == np.float16 for values in constants.values()):
        raise SlimdeployError(f"{source} is FP16 already: calibrate the float32 export")
    for node in graph.node:
        if reason := _unusable(node, constants):
            raise SlimdeployError(f"{source}: calibrate can't quantise {node.name}: {reason}")
    return _index(model, constants)


def model_info(source: Classifier, path: Path) -> ModelInfo:
    """The description in the model at `path`; raises SlimdeployError if there is none."""
    for entry in source.model.metadata_props:
        if entry.key == METADATA_KEY:
            return ModelInfo.from_json(entry.value, str(path))
    raise SlimdeployError(f"{path} contains no preprocessing: export it with slimdeploy")


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _unusable(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> str | None:
    """Why the passes can't handle a node of a known operator; empty if they can."""
    if node.op_type in ("Conv", "Gemm") and not all(name in constants for name in node.input[1:]):
        return "its weights and bias must be constants"
    if node.op_type == "Clip" and not all(name in constants for name in node.input[1:3] if name):
        return "its bounds must be constants"
    found = attributes(node)
    if node.op_type == "Gemm" and (found.get("alpha", 1), found.get("beta", 1), found.get("transA", 0)) != (
        1,
        1,
        0,
    ):
        return "alpha, beta and transA must have their defaults"
    return None


def _index(model: onnx.ModelProto, constants: dict[str, np.ndarray]) -> Classifier:
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node)
    producers = {node.output[0]: node for node in model.graph.node}
    return Classifier(model, constants, producers, dict(consumers))


def _check_operators(model: onnx.ModelProto, source: str) -> None:
    names = set()
    for node in model.graph.node:
        if node.op_type in _QUANTISED or node.op_type.startswith("QLinear"):
            raise SlimdeployError(
                f"{source} is quantised already ({node.op_type}): calibrate the float32 export"
            )
        if node.op_type == "Cast":
            raise SlimdeployError(f"{source} is in half precision: calibrate the float32 export")
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise SlimdeployError(
                f"{source}: calibrate doesn't support the operator {node.op_type} (node {node.name or '?'}); "
                f"supported: {', '.join(OPERATORS)}"
            )
        if not node.name or node.name in names:
            raise SlimdeployError(f"{source}: two nodes are called {node.name!r}: names must be unique")
        names.add(node.name)


def _dimensions(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)
