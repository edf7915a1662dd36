"""Writes a network as ONNX, node by node, so that the file holds exactly what an edge runtime wants.

Only Conv, Relu, MaxPool, Add, GlobalAveragePool, Flatten and Gemm; BN folded into the convolutions; dynamic
batch; one self-contained file. Nodes carry the names of the network's modules (`layer1.0.conv1`), which
calibration, sensitivity tables and latency tables refer to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from slimdeploy.toolchain.export.options import DEFAULT_OPSET
from slimdeploy.toolchain.model_info import METADATA_KEY, ModelInfo
from slimdeploy.toolchain.networks.layers import Conv, enumerate_layers
from slimdeploy.toolchain.networks.resnet import ResNet

INPUT, OUTPUT = "images", "logits"


def build_onnx(network: ResNet, info: ModelInfo, *, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """The ONNX model of `network`: input `images` (N, 3, size, size) float32, output `logits` (N, classes).

    `info` travels in the model's metadata.
    """
    size = info.preprocessing.size
    graph = _Graph(network)
    logits = _emit(graph, network, size)
    assert logits == OUTPUT
    proto = helper.make_graph(
        graph.nodes,
        f"slimdeploy-{network.spec.arch}",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", network.spec.classes])],
        graph.initializers,
    )
    opsets = [helper.make_opsetid("", opset)]
    # The lowest IR version that the opset allows: the runtimes of old JetPacks read no newer one.
    model = helper.make_model(proto, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    model.producer_name = "slimdeploy"
    helper.set_model_props(model, {METADATA_KEY: info.to_json(), "precision": "fp32"})
    onnx.checker.check_model(model, full_check=True)
    return model


def fold_batchnorm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """Weight (O, I, k, k) and bias (O,) of the convolution that computes `conv` then `bn` in eval mode."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    with torch.no_grad():
        scale = torch.rsqrt(bn.running_var.double() + bn.eps)
        if bn.affine:
            scale = scale * bn.weight.double()
        bias = -bn.running_mean.double() * scale
        if bn.affine:
            bias = bias + bn.bias.double()
        weight = conv.weight.double() * scale[:, None, None, None]
    return weight.float().cpu().numpy(), bias.float().cpu().numpy()


def _emit(graph: _Graph, network: ResNet, size: int) -> str:
    layers = enumerate_layers(network.spec, size)
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
    weight = graph.constant("fc.weight", network.fc.weight.detach().cpu().numpy())
    bias = graph.constant("fc.bias", network.fc.bias.detach().cpu().numpy())
    return graph.node("Gemm", [x, weight, bias], "fc", output=OUTPUT, transB=1)


class _Graph:
    """Nodes and initializers while they are written."""

    def __init__(self, network: ResNet) -> None:
        self.network = network
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
        weight, bias = fold_batchnorm(self.network.conv(conv.name), self.network.batchnorm(conv.batchnorm))
        inputs = [x, self.constant(f"{conv.name}.weight", weight), self.constant(f"{conv.name}.bias", bias)]
        return self.node("Conv", inputs, conv.name, kernel_shape=[conv.kernel] * 2, strides=[conv.stride] * 2,
                         pads=[conv.padding] * 4)  # fmt: skip

    def relu(self, x: str, name: str) -> str:
        return self.node("Relu", [x], name)
