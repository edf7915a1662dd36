"""Run 1×1 convolutions on a batch as one tall image, (N, C, H, W) as (1, C, N·H, W): same values, less
overhead.

onnxruntime's INT8 convolution processes a batch image by image. If an image has 4×4 or 2×2 pixels, as in the
last layers of a ResNet on small images, much of the time is overhead per image. A 1×1 convolution gives the
same result for the joined images.

The conversions are Transpose-Reshape-Transpose on INT8 values. onnxruntime runs INT8 convolutions in NHWC and
removes the transposes, so that only the Reshape remains, which copies nothing.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from slimdeploy.calibrate.classifier import RECTIFIERS, attributes
from slimdeploy.calibrate.passes import GraphWriter

_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


def fold_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, with quantised 1×1 convolutions and the sums between them on the folded batch.

    `model` is in the `cpu` form of qdq.insert_qdq. The logits are bit-identical.
    """
    folding = _Folding(model)
    for node in model.graph.node:
        folding.write(node)
    return folding.writer.model(model)


class _Folding:
    """Walks through the graph in order and records in which of the two shapes each tensor exists."""

    def __init__(self, model: onnx.ModelProto) -> None:
        constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
        self.writer = GraphWriter(constants=constants)
        self.shapes = _image_shapes(model)
        self.producers = {node.output[0]: node for node in model.graph.node}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.folded: set[str] = set()
        """Tensors computed in the folded shape."""
        self.values: dict[tuple[str, bool], str] = {}
        """(Output of a pair, folded?) -> its name in that shape."""

    def write(self, node: onnx.NodeProto) -> None:
        if self._is_pair(node.output[0]):
            return  # added before its reader, in the shape that the reader needs
        fold = self._foldable(node)
        inputs = [self._value(name, fold) if self._is_pair(name) else name for name in node.input]
        self.writer.copy(node, inputs)
        if fold:
            self.folded.add(node.output[0])

    def _is_pair(self, tensor: str) -> bool:
        """Whether `tensor` is an activation after a Q/DQ pair."""
        node = self.producers.get(tensor)
        return node is not None and node.op_type == "DequantizeLinear" and node.input[0] in self.producers

    def _foldable(self, node: onnx.NodeProto) -> bool:
        """Whether `node` gives the same result on the folded batch, and only Q nodes read its output."""
        if node.op_type in (*RECTIFIERS, "QuantizeLinear"):  # element-wise: either shape
            return node.input[0] in self.folded
        if not self._becomes_int8(node.output[0]):
            return False
        if node.op_type == "Add":
            pairs = [t for t in node.input if self._is_pair(t) and self.producers[t].input[0] in self.folded]
            shapes = {self.shapes[self._source(t)] for t in pairs}  # two if one value per channel is added
            return len(pairs) == len(node.input) and len(shapes) == 1
        if node.op_type != "Conv" or not self._is_pair(node.input[0]):
            return False
        found, height = attributes(node), self.shapes[self._source(node.input[0])][1]
        plain = (
            set(found["kernel_shape"]) == {1}
            and not any(found.get("pads", []))
            and found.get("group", 1) == 1
        )
        return plain and height % found.get("strides", [1])[0] == 0

    def _becomes_int8(self, tensor: str) -> bool:
        readers = self.readers[tensor]
        if len(readers) == 1 and readers[0].op_type in RECTIFIERS:
            return self._becomes_int8(readers[0].output[0])
        return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)

    def _source(self, pair: str) -> str:
        """The float tensor quantised by a pair."""
        return self.producers[self.producers[pair].input[0]].input[0]

    def _value(self, pair: str, fold: bool) -> str:
        """The output of `pair` in the requested shape, added on first use."""
        if (pair, fold) not in self.values:
            dequantise = self.producers[pair]
            quantised = dequantise.input[0]
            if (quantised in self.folded) == fold:
                self.writer.copy(dequantise)
                self.values[pair, fold] = pair
            else:
                converted = self._reshaped(quantised, self._source(pair), fold)
                name = f"{pair}.{'folded' if fold else 'unfolded'}"
                self.writer.node("DequantizeLinear", [converted, *dequantise.input[1:]], name)
                self.values[pair, fold] = name
        return self.values[pair, fold]

    def _reshaped(self, quantised: str, source: str, fold: bool) -> str:
        channels, height, width = self.shapes[source]
        shape = [1, -1, width, channels] if fold else [-1, height, width, channels]
        constant = self.writer.constant("shape." + "x".join(map(str, shape)), np.array(shape, np.int64))
        name = f"{quantised}.{'folded' if fold else 'unfolded'}"
        rows = self.writer.node("Transpose", [quantised], f"{name}.nhwc", perm=_TO_NHWC)
        rows = self.writer.node("Reshape", [rows, constant], f"{name}.rows")
        return self.writer.node("Transpose", [rows], name, perm=_TO_NCHW)


def _image_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, int, int]]:
    """Channels, height and width of every 4-D tensor."""
    graph = shape_inference.infer_shapes(model).graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if len(sizes) == 4:
            found[value.name] = (sizes[1], sizes[2], sizes[3])
    return found
