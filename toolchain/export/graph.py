"""Write a network as an ONNX graph, node by node, from its graph and any weights. No torch here.

Each operator writes its own nodes; BN is folded into the preceding convolution or linear layer. Dynamic batch
size, one self-contained file. Nodes are named after the network's nodes (`layer1.0.conv1`), which
calibration, sensitivity tables and latency tables refer to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.graph import INPUT, Graph, Node
from slimdeploy.toolchain.networks.residual import batchnorm_behind

OUTPUT = "logits"
WEIGHTED = ("conv", "linear")
AXES_AS_INPUT = 18
"""From this opset on, the axes of ONNX's reductions are an input and no attribute."""

Parameters = Callable[[Node, Node | None], Mapping[str, np.ndarray]]
"""The float32 tensors of a node, by their names in Operator.tensors; for convolutions and linear layers
weight and bias, with the given BN folded in.
"""


def build_graph(graph: Graph, size: int, *, parameters: Parameters, opset: int) -> onnx.ModelProto:
    """The ONNX model of `graph` with the parameters given: input `images` (N, channels, size, size)
    float32, output `logits` (N, classes).
    """
    written = _write(graph, size, parameters, opset)
    proto = helper.make_graph(
        written.nodes,
        f"slimdeploy-{graph.arch}",
        [
            helper.make_tensor_value_info(
                INPUT, TensorProto.FLOAT, ["batch", graph.image_channels, size, size]
            )
        ],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", graph.classes])],
        [numpy_helper.from_array(values, name) for name, values in written.constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    # The lowest IR version that the opset allows: runtimes of old JetPacks can't read newer ones.
    model = helper.make_model(proto, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    model.producer_name = "slimdeploy"
    return model


def _write(graph: Graph, size: int, parameters: Parameters, opset: int) -> _OnnxNodes:
    written, shapes = _OnnxNodes(opset), graph.shapes(size)
    values, folded = {INPUT: INPUT}, set()
    for node in graph.nodes:
        first = values[node.inputs[0]]
        if node.name in folded:
            values[node.name] = first
            continue
        bn = batchnorm_behind(graph, node) if node.operator in WEIGHTED else None
        if bn:
            folded.add(bn.name)
        arrays = parameters(node, bn) if node.op.tensors(node) else {}
        inputs = [values[name] for name in node.inputs]
        values[node.name] = node.op.write(node, inputs, written, arrays, shapes[node.inputs[0]])
    written.rename(values[graph.output], OUTPUT)
    return written


@functools.cache
def _first_opset(operator: str) -> int:
    schemas = onnx.defs.get_all_schemas_with_history()
    return min(s.since_version for s in schemas if s.name == operator and not s.domain)


class _OnnxNodes:
    """Collects nodes and constants; implements operators.base.OnnxNodes."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        needed = _first_opset(operator)
        if needed > self.opset:
            raise SlimdeployError(
                f"{name}: ONNX has {operator} since opset {needed}: `opset` must be at least {needed}, "
                f"not {self.opset}"
            )
        output = f"{name}.out"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=name, **attributes))
        return output

    def reduce(self, operator: str, value: str, name: str, axes: list[int]) -> str:
        if self.opset < AXES_AS_INPUT:
            return self.node(operator, [value], name, axes=axes)
        return self.node(operator, [value, self.constant(f"{name}.axes", np.array(axes, np.int64))], name)

    def constant(self, name: str, values: np.ndarray | np.generic) -> str:
        self.constants[name] = np.asarray(values)
        return name

    def rename(self, value: str, name: str) -> None:
        """Rename a value that one node produces and none reads."""
        last = next(node for node in reversed(self.nodes) if node.output[0] == value)
        last.output[0] = name
