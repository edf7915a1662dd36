"""Insert INT8 as Q/DQ pairs (QuantizeLinear, DequantizeLinear) into the graph: a pure function.

Weights are symmetric and per output channel, activations per tensor. Each runtime needs its own form:

- `tensorrt`: signed symmetric activations at the inputs of convolutions, classifier and pooling, and on the
  skip branch of a residual sum (a pair between a convolution and its sum would prevent TensorRT from fusing
  the two: NVIDIA, Working with Quantized Types, "Q/DQ Layer-Placement Recommendations"). Float biases.
- `cpu`: every activation that a layer reads or produces is quantised, unsigned, so that onnxruntime computes
  with integers throughout. After a ReLU the smallest value is zero, so the ReLU can be removed; other
  activations have their zero point at 128. INT32 biases. Weights are limited to ±64: x86 processors without
  VNNI add two neighbouring products (u8 × s8) in 16 bits, and 2 × 255 × 64 is the largest sum that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from slimdeploy.calibrate.classifier import CARRIERS, RECTIFIERS, Classifier, attributes
from slimdeploy.calibrate.passes import GraphWriter

WEIGHTED = ("Conv", "Gemm")
POOLINGS = ("MaxPool", "GlobalMaxPool")


@dataclass(frozen=True)
class Form:
    """Properties of a target."""

    unsigned: bool
    """uint8 activations instead of int8."""
    everywhere: bool
    """Quantise every activation of a quantised layer, outputs included; else the inputs that NVIDIA
    recommends.
    """
    integer_bias: bool
    weight_steps: int
    """Steps between zero and the largest weight of a channel."""

    @property
    def reduced_range(self) -> bool:
        """Whether the sum of two neighbouring products (u8 × s8) always fits in 16 bits."""
        return 2 * 255 * self.weight_steps < 2**15

    def steps(self, *, rectified: bool) -> int:
        """Steps between zero and the threshold."""
        return 255 if self.unsigned and rectified else 127


FORMS = {
    "tensorrt": Form(unsigned=False, everywhere=False, integer_bias=False, weight_steps=127),
    "cpu": Form(unsigned=True, everywhere=True, integer_bias=True, weight_steps=64),
}


# A bias is stored in steps of (activation scale × weight scale): the maximum number of steps, and the minimum
# step. onnxruntime stores float biases in the same way, in the type of the scales.
_INT32_BIAS = (2.0**30, 0.0)
_FP16_BIAS = (2.0**15, 2.0**-22)


@dataclass(frozen=True)
class QdqOptions:
    """Options of the pairs."""

    target: str = "tensorrt"
    half_scales: bool = False
    """Round every scale to FP16, so that a later conversion of the graph to FP16 doesn't change it."""
    float_weights: bool = False
    """Keep the weights in float followed by a Q/DQ pair, as required by TensorRT 8."""


def quantised_inputs(
    source: Classifier, node: onnx.NodeProto, target: str, float_layers: Set[str] = frozenset()
) -> list[str]:
    """The inputs of `node` that get a Q/DQ pair in the form of `target`, without weights."""
    everywhere = FORMS[target].everywhere
    if not source.is_layer(node):
        # The inputs of a float operator are quantised if a layer produced them: else that layer couldn't end
        # in integers. For a pooling, layers behind a Concat count too: GoogLeNet then stays in integers.
        parts = source.concatenated if node.op_type in POOLINGS else lambda tensor: [tensor]
        return [
            tensor
            for tensor in source.read_by(node)
            if everywhere and all(source.from_layer(part, float_layers) for part in parts(tensor))
        ]
    if node.op_type == "Add":
        return list(node.input) if everywhere else [_skip_branch(source, node)]
    return [node.input[0]]


def insert_qdq(
    source: Classifier,
    thresholds: Mapping[str, float],
    *,
    options: QdqOptions,
    float_layers: Set[str] = frozenset(),
) -> onnx.ModelProto:
    """The model with Q/DQ pairs. `thresholds` contains the clipping threshold of every quantised tensor, by
    the name of its origin (Classifier.origin). The nodes in `float_layers` read unquantised values and keep
    float weights.
    """
    writer = _QdqWriter(source, thresholds, options)
    for node in source.nodes:
        if node.name in float_layers or node.op_type in RECTIFIERS:
            writer.copy(node)
            continue
        pairs = set(quantised_inputs(source, node, options.target, float_layers))
        if node.op_type in CARRIERS:  # in INT8 only between INT8 layers
            pairs = pairs if _feeds_int8(source, node, float_layers) else set()
        inputs = [writer.activation(t) if t in pairs else t for t in node.input]
        if node.op_type in WEIGHTED:
            inputs = writer.weighted(node, inputs[0])
        writer.copy(node, inputs)
    return writer.model(source.model)


def _feeds_int8(source: Classifier, node: onnx.NodeProto, float_layers: Set[str]) -> bool:
    """Whether any layer after a carrier is quantised."""
    readers = source.consumers.get(node.output[0], [])
    return any(
        _feeds_int8(source, r, float_layers)
        if r.op_type in (*CARRIERS, *RECTIFIERS)
        else source.is_layer(r) and r.name not in float_layers
        for r in readers
    )


def _skip_branch(source: Classifier, add: onnx.NodeProto) -> str:
    """The input of a residual sum other than the last convolution of the main path, which only the
    sum reads.
    """
    producers = [source.producers.get(name) for name in add.input]
    ends_main = [
        node is not None and node.op_type == "Conv" and len(source.consumers[name]) == 1
        for name, node in zip(add.input, producers, strict=True)
    ]
    # With a projection shortcut both inputs qualify: exporters write the main path first.
    return add.input[0] if ends_main == [False, True] else add.input[1]


class _QdqWriter(GraphWriter):
    def __init__(self, source: Classifier, thresholds: Mapping[str, float], options: QdqOptions) -> None:
        super().__init__(constants=dict(source.constants))
        self.source, self.thresholds, self.options = source, thresholds, options
        self.form = FORMS[options.target]
        self.pairs: dict[str, str] = {}
        """Tensor -> its value after the pair."""

    def activation(self, tensor: str) -> str:
        """`tensor` after a Q/DQ pair, which all its readers share."""
        if tensor not in self.pairs:
            zero = 0 if not self.form.unsigned or self.source.is_rectified(tensor) else 128
            parameters = [
                self.constant(f"{tensor}.scale", np.float32(self.scale(tensor))),
                self.constant(f"{tensor}.zero", np.uint8(zero) if self.form.unsigned else np.int8(zero)),
            ]
            quantised = self.node("QuantizeLinear", [tensor, *parameters], f"{tensor}.q")
            self.pairs[tensor] = self.node("DequantizeLinear", [quantised, *parameters], f"{tensor}.dq")
        return self.pairs[tensor]

    def scale(self, tensor: str) -> float:
        """The size of one step of `tensor`."""
        steps = self.form.steps(rectified=self.source.is_rectified(tensor))
        threshold = self.thresholds[self.source.origin(tensor)]
        return float(self.rounded(np.asarray(threshold / steps if threshold > 0 else 1.0)))

    def rounded(self, scales: np.ndarray) -> np.ndarray:
        """Scales as stored: rounded to FP16 if requested, and never 0, nor are products of two in float32."""
        kind, least = (np.float16, 2.0**-20) if self.options.half_scales else (np.float32, 2.0**-60)
        return np.maximum(scales, least).astype(kind).astype(np.float32)

    def weighted(self, node: onnx.NodeProto, image: str) -> list[str]:
        """Inputs of a Conv or Gemm whose activation input is `image`: quantised weights and the bias."""
        weight, *bias = (self.source.constants[name] for name in node.input[1:])
        axis = 1 if node.op_type == "Gemm" and not attributes(node).get("transB", 0) else 0
        scales = self._weight_scales(weight, axis, bias[0] if bias else None, self.scale(node.input[0]))
        inputs = [image, self._weight(node.input[1], weight, scales, axis)]
        if bias and self.form.integer_bias:
            inputs.append(self._bias(node.input[2], bias[0], scales, self.scale(node.input[0])))
        elif bias:
            inputs.append(node.input[2])
        return inputs

    def _weight_scales(
        self, weight: np.ndarray, axis: int, bias: np.ndarray | None, activation: float
    ) -> np.ndarray:
        """The size of one step of the weights per output channel, if one step of the input has the size
        `activation`.
        """
        others = tuple(i for i in range(weight.ndim) if i != axis)
        scales = np.abs(weight).max(axis=others).astype(np.float64) / self.form.weight_steps
        if bias is not None:
            # If sparse training has switched a channel off, its weights alone would make the steps too small
            # for the bias.
            steps, least = _FP16_BIAS if self.options.half_scales else _INT32_BIAS
            scales = np.maximum(scales, np.maximum(np.abs(bias) / steps, least) / activation)
        return self.rounded(np.where(scales > 0, scales, 1.0))

    def _weight(self, name: str, weight: np.ndarray, scales: np.ndarray, axis: int) -> str:
        parameters = [
            self.constant(f"{name}.scale", scales),
            self.constant(f"{name}.zero", np.zeros(len(scales), np.int8)),
        ]
        if self.options.float_weights:
            stored = self.node("QuantizeLinear", [name, *parameters], f"{name}.q", axis=axis)
        else:
            step = np.expand_dims(scales, tuple(i for i in range(weight.ndim) if i != axis))
            limit = self.form.weight_steps
            steps = np.clip(np.rint(weight / step), -limit, limit)
            stored = self.constant(f"{name}.q", steps.astype(np.int8))
        return self.node("DequantizeLinear", [stored, *parameters], f"{name}.dq", axis=axis)

    def _bias(self, name: str, bias: np.ndarray, scales: np.ndarray, activation: float) -> str:
        step = (scales * np.float32(activation)).astype(np.float32)
        parameters = [
            self.constant(f"{name}.scale", step),
            self.constant(f"{name}.zero", np.zeros(len(step), np.int32)),
        ]
        stored = self.constant(f"{name}.q", np.rint(bias / step.astype(np.float64)).astype(np.int32))
        return self.node("DequantizeLinear", [stored, *parameters], f"{name}.dq", axis=0)


def quantised_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the Conv and Gemm nodes of `model` with INT8 weights."""
    pairs = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [n.name for n in model.graph.node if n.op_type in WEIGHTED and n.input[1] in pairs]


def set_precision(model: onnx.ModelProto, precision: str, **facts: str) -> onnx.ModelProto:
    """The model with `precision` (and further entries) in its metadata; other metadata is kept."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    helper.set_model_props(
        made, {p.key: p.value for p in model.metadata_props} | {"precision": precision} | facts
    )
    return made
