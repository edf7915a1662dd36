"""Writes a network as an ONNX graph, node by node, from its layers and any weights. No torch here.

Only Conv, Relu, MaxPool, Add, GlobalAveragePool, Flatten and Gemm; dynamic batch; one self-contained file.
Nodes carry the names of the network's modules (`layer1.0.conv1`), which calibration, sensitivity tables and
latency tables refer to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimdeploy.toolchain.networks.layers import Conv, enumerate_layers
from slimdeploy.toolchain.networks.spec import NetworkSpec

INPUT, OUTPUT = "images", "logits"

Parameters = tuple[np.ndarray, np.ndarray]
"""Weight and bias: (O, I, k, k) and (O,) of a convolution, (classes, I) and (classes,) of the classifier."""


def build_graph(
    spec: NetworkSpec, size: int, *, conv: Callable[[Conv], Parameters], classifier: Parameters, opset: int
) -> onnx.ModelProto:
    """The ONNX model of `spec` with the parameters given: input `images` (N, 3, size, size) float32, output
    `logits` (N, classes).
    """
    graph = _Graph(conv)
    logits = _emit(graph, spec, size, classifier)
    assert logits == OUTPUT
    proto = helper.make_graph(
        graph.nodes,
        f"slimdeploy-{spec.arch}",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", spec.classes])],
        graph.initializers,
    )
    opsets = [helper.make_opsetid("", opset)]
    # The lowest IR version that the opset allows: the runtimes of old JetPacks read no newer one.
    model = helper.make_model(proto, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    model.producer_name = "slimdeploy"
    return model


def _emit(graph: _Graph, spec: NetworkSpec, size: int, classifier: Parameters) -> str:
    layers = enumerate_layers(spec, size)
    x = graph.relu(graph.conv(INPUT, layers.stem), "relu")
    if layers.pool_size is not None:
        x = graph.node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for block in layers.blocks:
        shortcut = graph.conv(x, block.shortcut) if block.shortcut else x
        if block.convs:
            for i, conv in enumerate(block.convs, start=1):
                x = graph.conv(x, conv)
                if conv.relu:
                    x = graph.relu(x, f"{block.name}.relu{i}")
            x = graph.relu(graph.node("Add", [x, shortcut], f"{block.name}.add"), f"{block.name}.relu")
        elif block.shortcut:
            x = graph.relu(shortcut, f"{block.name}.relu")
        # A removed block without projection passes on what is already ≥ 0: nothing to write.
    x = graph.node("GlobalAveragePool", [x], "avgpool")
    x = graph.node("Flatten", [x], "flatten", axis=1)
    weight, bias = classifier
    inputs = [x, graph.constant("fc.weight", weight), graph.constant("fc.bias", bias)]
    return graph.node("Gemm", inputs, "fc", output=OUTPUT, transB=1)


class _Graph:
    """Nodes and initializers while they are written."""

    def __init__(self, parameters: Callable[[Conv], Parameters]) -> None:
        self.parameters = parameters
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(
        self, operator: str, inputs: list[str], name: str, *, output: str | None = None, **attributes: Any
    ) -> str:
        output = output or f"{name}.out"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, conv: Conv) -> str:
        weight, bias = self.parameters(conv)
        inputs = [x, self.constant(f"{conv.name}.weight", weight), self.constant(f"{conv.name}.bias", bias)]
        return self.node("Conv", inputs, conv.name, kernel_shape=[conv.kernel] * 2, strides=[conv.stride] * 2,
                         pads=[conv.padding] * 4)  # fmt: skip

    def relu(self, x: str, name: str) -> str:
        return self.node("Relu", [x], name)
