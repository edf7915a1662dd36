"""Rewrites of the float graph before quantisation: pure functions; the logits stay the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from slimdeploy.calibrate.classifier import Classifier, attributes, classifier


@dataclass
class GraphWriter:
    """Nodes and constants of a graph during a rewrite."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node named like its output; returns the name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: np.ndarray | np.generic) -> str:
        self.constants[name] = np.asarray(values)
        return name

    def copy(self, node: onnx.NodeProto, inputs: list[str] | None = None) -> onnx.NodeProto:
        """Add a copy of `node`, with `inputs` in place of its own if given."""
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        if inputs is not None:
            copied.input[:] = inputs
        self.nodes.append(copied)
        return copied

    def model(self, like: onnx.ModelProto) -> onnx.ModelProto:
        """A model with these nodes and constants; everything else is copied from `like`."""
        made = onnx.ModelProto()
        made.CopyFrom(like)
        del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
        made.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        made.graph.initializer.extend(
            numpy_helper.from_array(values, name) for name, values in self.constants.items() if name in read
        )
        return made


def fold_batchnorm(source: Classifier) -> Classifier:
    """Fold every BatchNormalization that is the only reader of a convolution into it (slimdeploy's exports
    have none); the others run in float.
    """
    writer = GraphWriter(constants=dict(source.constants))
    for node in source.nodes:
        conv = source.producers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or len(source.consumers[conv.output[0]]) != 1:
            writer.copy(node)
            continue
        gamma, beta, mean, variance = (source.constants[name].astype(np.float64) for name in node.input[1:5])
        scale = gamma / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        weight = source.constants[conv.input[1]]
        bias = source.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(weight))
        inputs = [
            conv.input[0],
            writer.constant(f"{conv.name}.weight.folded", np.float32(weight * scale[:, None, None, None])),
            writer.constant(f"{conv.name}.bias.folded", np.float32(beta + (bias - mean) * scale)),
        ]
        written = next(n for n in writer.nodes if n.name == conv.name)
        written.input[:] = inputs
        written.output[:] = [node.output[0]]
    return classifier(writer.model(source.model), source="the model with BN folded")


def pad_image_channels(source: Classifier, multiple: int = 4) -> Classifier:
    """Pad the images with channels of zeros to a multiple of `multiple` before the first convolution.

    onnxruntime's fast INT8 convolution reads input channels in groups of four: with three channels it first
    copies every patch of the image. Images that anything but a dense convolution reads stay as they are.
    """
    channels = source.image_shape[0]
    missing = -channels % multiple
    readers = source.consumers[source.input]
    dense = all(node.op_type == "Conv" and attributes(node).get("group", 1) == 1 for node in readers)
    if not missing or not dense:
        return source
    writer = GraphWriter(constants=dict(source.constants))
    pads = writer.constant(f"{source.input}.pads", np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64))
    padded = writer.node("Pad", [source.input, pads], f"{source.input}.padded")
    for node in source.nodes:
        if node.input[0] != source.input:
            writer.copy(node)
            continue
        weight = source.constants[node.input[1]]
        extended = np.pad(weight, [(0, 0), (0, missing), (0, 0), (0, 0)])
        name = writer.constant(f"{node.input[1]}.padded", extended)
        writer.copy(node, [padded, name, *node.input[2:]])
    return classifier(writer.model(source.model), source="the model with its images padded")
