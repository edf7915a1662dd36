"""FP16 in the graph: a pure pass that converts a float32 ONNX model to half precision.

The precision is in the file, because TensorRT 11 has no flags for it. Images and logits stay float32, so
callers need no change. Nodes whose values overflow (FP16 ends at 65,504) stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimdeploy.toolchain.errors import SlimdeployError

LIMIT = float(np.finfo(np.float16).max) / 2
"""Half of FP16's largest number, because other images may give larger values than the measured ones."""
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_HALF_SCALES_OPSET = 19


def overflowing_layers(model: onnx.ModelProto, largest: Mapping[str, float]) -> list[str]:
    """Names of the nodes that must stay in float32, in order: they read, write or contain a value beyond
    LIMIT.

    `largest` is the largest |x| of each activation, measured on real images; missing tensors are assumed to
    fit.
    """
    beyond = {name for name, value in largest.items() if not value <= LIMIT}
    beyond |= {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and not np.abs(numpy_helper.to_array(tensor)).max(initial=0) <= LIMIT
    }
    return [node.name for node in model.graph.node if beyond & {*node.input, *node.output}]


def to_fp16(model: onnx.ModelProto, *, float_layers: Set[str] = frozenset()) -> onnx.ModelProto:
    """The model with all float32 arithmetic in FP16, except the nodes named in `float_layers`.

    INT8 models keep their Q/DQ pairs with FP16 scales. Raises SlimdeployError if the opset is too old for
    that (below 19).
    """
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset < _HALF_SCALES_OPSET and any(node.op_type in _QUANTISERS for node in model.graph.node):
        raise SlimdeployError(
            f"INT8 with FP16 compute needs opset {_HALF_SCALES_OPSET}, the model has {opset}: "
            f"export it with `opset` {_HALF_SCALES_OPSET}, or use `compute` fp32"
        )
    return _Halving(model, float_layers).run()


class _Halving:
    def __init__(self, model: onnx.ModelProto, float_layers: Set[str]) -> None:
        self.model, self.float_layers = model, float_layers
        self.constants = {c.name: c for c in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.written: dict[str, onnx.TensorProto] = {}
        self.types = _element_types(model)
        self.half: set[str] = set()
        """Activations that exist in FP16 under their own name."""
        self.casts: dict[tuple[str, int], str] = {}

    def run(self) -> onnx.ModelProto:
        outputs = {value.name for value in self.model.graph.output}
        for node in self.model.graph.node:
            half = node.name not in self.float_layers
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.input[:] = [self._input(name, half) for name in node.input]
            self.nodes.append(copied)
            for i, name in enumerate(node.output):
                if not half or self.types[name] != TensorProto.FLOAT:
                    continue
                if name in outputs:  # outputs must stay float32
                    copied.output[i] = f"{name}.fp16"
                    self._cast(copied.output[i], TensorProto.FLOAT, name)
                else:
                    self.half.add(name)
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
        made.graph.node.extend(self.nodes)
        made.graph.initializer.extend(self.written.values())
        return made

    def _input(self, name: str, half: bool) -> str:
        """The name of `name` in FP16 (`half`) or float32, for a node that computes in that type."""
        wanted = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        if not name:  # an omitted optional input
            return name
        if name in self.constants:
            return self._constant(name, half)
        if self.types[name] != TensorProto.FLOAT or (name in self.half) == half:
            return name
        if (name, wanted) not in self.casts:
            self.casts[name, wanted] = self._cast(name, wanted, f"{name}.{'fp16' if half else 'fp32'}")
        return self.casts[name, wanted]

    def _constant(self, name: str, half: bool) -> str:
        tensor = self.constants[name]
        if tensor.data_type == TensorProto.FLOAT and half:
            name = f"{name}.fp16"
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
        self.written[name] = tensor
        return name

    def _cast(self, name: str, wanted: int, output: str) -> str:
        self.nodes.append(helper.make_node("Cast", [name], [output], name=f"{output}.cast", to=wanted))
        return output


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every activation."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}
