"""The operators that slimdeploy writes, with the shapes of their outputs.

The size of every activation is thus known before a runtime opens the file. To add an operator, add an entry
to OPERATORS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from slimdeploy.toolchain.runtime.onnx_graph import Constant, Graph, Node, Shape
from slimdeploy.toolchain.runtime.protobuf import DamagedError

MAX_ELEMENTS = 1 << 22
MAX_GROWTH = 1024
"""Limits of an activation for one image: MAX_ELEMENTS, and MAX_GROWTH times the elements of the image."""

Shapes = dict[str, Shape]
Rule = Callable[[Node, list[Shape], list[Constant | None]], list[Shape]]
"""Node, shapes of its inputs, and its constant inputs -> shapes of its outputs."""


def activation_shapes(graph: Graph, image: Shape) -> Shapes:
    """The shape of every activation for one image of shape `image` (1, C, H, W).

    Raises DamagedError for an unknown operator, for inputs that it can't process, and for an activation that
    is too large.
    """
    (given,) = graph.inputs
    shapes: Shapes = {given: image, **{name: constant.shape for name, constant in graph.constants.items()}}
    constants = dict(graph.constants)
    limit = max(MAX_ELEMENTS, MAX_GROWTH * math.prod(image))
    for node in graph.nodes:
        if node.operator not in OPERATORS or node.domain not in ("", "ai.onnx") or node.has_subgraph:
            raise DamagedError(f"the operator {node.operator[:40]!r}, which slimdeploy doesn't write")
        names = [name for name in node.inputs if name]
        if missing := [name for name in names if name not in shapes]:
            raise DamagedError(
                f"{node.operator} {node.name[:40]!r} reads {missing[0][:40]!r}, which doesn't exist"
            )
        try:
            found = OPERATORS[node.operator](
                node, [shapes.get(name, ()) for name in node.inputs], [constants.get(n) for n in node.inputs]
            )
        except (IndexError, TypeError, ValueError, ZeroDivisionError, KeyError):
            found = []
        if not found or any(d < 1 for shape in found for d in shape):
            given_shapes = " and ".join("×".join(map(str, shapes[name])) or "a number" for name in names)
            raise DamagedError(f"{_said(node)} can't compute {given_shapes[:80]}")
        for name, shape in zip(node.outputs, found, strict=False):
            if math.prod(shape) > limit or len(shape) > 8:
                sizes = "×".join(map(str, shape))[:40]
                raise DamagedError(f"{_said(node)} produces {sizes} values for an image; maximum {limit}")
            shapes[name] = shape
        if node.operator == "Constant" and isinstance(value := node.attributes.get("value"), Constant):
            constants[node.outputs[0]] = value
    return {name: shape for name, shape in shapes.items() if name not in constants}


def _said(node: Node) -> str:
    return f"{node.operator} {node.name[:40]!r}"


def _same(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    return [inputs[0]] * len(node.outputs)


def _broadcast(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    return [_common(inputs)]


def _common(shapes: list[Shape]) -> Shape:
    """numpy's rule."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    common = tuple(max(sizes) for sizes in zip(*padded, strict=True))
    if any(size not in (1, wanted) for shape in padded for size, wanted in zip(shape, common, strict=True)):
        raise ValueError(shapes)
    return common


def _conv(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    (batch, channels, *size), (filters, depth, *kernel) = inputs[0], inputs[1]
    groups = node.attributes.get("group", 1)
    if depth * groups != channels or filters % groups or len(size) != 2 or len(kernel) != 2:
        raise ValueError(inputs)
    if list(node.attributes.get("kernel_shape", kernel)) != kernel or inputs[2:] not in ([], [(filters,)]):
        raise ValueError(inputs)
    return [(batch, filters, *_windows(node, size, kernel))]


def _pool(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    batch, channels, *size = inputs[0]
    return [(batch, channels, *_windows(node, size, node.attributes["kernel_shape"]))]


def _windows(node: Node, size: list[int], kernel: list[int]) -> list[int]:
    """Number of positions of a window on each axis; each padding must be smaller than the window."""
    found = node.attributes
    if found.get("auto_pad", "NOTSET") != "NOTSET" or len(kernel) != len(size):
        raise ValueError(found)
    strides, dilations = found.get("strides", [1] * len(size)), found.get("dilations", [1] * len(size))
    pads = found.get("pads", [0] * 2 * len(size))
    fits = []
    for i, side in enumerate(size):
        window = dilations[i] * (kernel[i] - 1) + 1
        before, after = pads[i], pads[i + len(size)]
        if min(before, after) < 0 or max(before, after) > window or min(kernel[i], dilations[i]) < 1:
            raise ValueError(pads)
        space = side + before + after - window
        fits.append((-(-space // strides[i]) if found.get("ceil_mode") else space // strides[i]) + 1)
    return fits


def _global_pool(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    batch, channels, *size = inputs[0]
    return [(batch, channels, *(1 for _ in size))]


def _flatten(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    axis = node.attributes.get("axis", 1)
    return [(math.prod(inputs[0][:axis]), math.prod(inputs[0][axis:]))]


def _gemm(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    (rows, inner), (other, columns) = inputs[0], inputs[1]
    if node.attributes.get("transA"):
        rows, inner = inner, rows
    if node.attributes.get("transB"):
        other, columns = columns, other
    made = (rows, columns)
    if inner != other or (len(inputs) > 2 and _common([made, inputs[2]]) != made):
        raise ValueError(inputs)
    return [made]


def _matmul(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    (*a, rows, inner), (*b, other, columns) = inputs
    if inner != other:
        raise ValueError(inputs)
    return [(*(_common([tuple(a), tuple(b)]) if a or b else ()), rows, columns)]


def _concat(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    axis = _axis(node.attributes["axis"], inputs[0])
    rests = {shape[:axis] + shape[axis + 1 :] for shape in inputs}
    if len(rests) != 1:
        raise ValueError(inputs)
    return [(*inputs[0][:axis], sum(shape[axis] for shape in inputs), *inputs[0][axis + 1 :])]


def _transpose(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    order = node.attributes.get("perm", list(reversed(range(len(inputs[0])))))
    if sorted(order) != list(range(len(inputs[0]))):
        raise ValueError(order)
    return [tuple(inputs[0][i] for i in order)]


def _reshape(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    wanted = [inputs[0][i] if size == 0 else size for i, size in enumerate(_values(constants[1]))]
    count = math.prod(inputs[0])
    if wanted.count(-1) == 1:
        wanted[wanted.index(-1)] = count // math.prod(size for size in wanted if size != -1)
    if math.prod(wanted) != count:
        raise ValueError(wanted)
    return [tuple(wanted)]


def _split(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    axis = _axis(node.attributes.get("axis", 0), inputs[0])
    count = len(node.outputs)
    given = node.attributes.get("split") or (_values(constants[1]) if len(inputs) > 1 else None)
    sizes = list(given) if given else [-(-inputs[0][axis] // count)] * count
    if not given:
        sizes[-1] = inputs[0][axis] - sum(sizes[:-1])
    if sum(sizes) != inputs[0][axis] or len(sizes) != count:
        raise ValueError(sizes)
    return [(*inputs[0][:axis], size, *inputs[0][axis + 1 :]) for size in sizes]


def _slice(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    starts, ends = _values(constants[1]), _values(constants[2])
    axes = _values(constants[3]) if len(inputs) > 3 and inputs[3] else list(range(len(starts)))
    steps = _values(constants[4]) if len(inputs) > 4 else [1] * len(starts)
    shape = list(inputs[0])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        shape[axis] = len(range(*slice(start, end, step).indices(shape[axis])))
    return [tuple(shape)]


def _reduce(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    axes = node.attributes.get("axes") or (
        _values(constants[1]) if len(inputs) > 1 else range(len(inputs[0]))
    )
    reduced = {_axis(axis, inputs[0]) for axis in axes}
    kept = node.attributes.get("keepdims", 1)
    return [tuple(1 if i in reduced else n for i, n in enumerate(inputs[0]) if kept or i not in reduced)]


def _pad(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    pads, rank = _values(constants[1]), len(inputs[0])
    if len(pads) != 2 * rank or len(inputs) > 3:
        raise ValueError(pads)
    return [tuple(n + pads[i] + pads[i + rank] for i, n in enumerate(inputs[0]))]


def _expand(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    target = tuple(_values(constants[1]))
    if len(target) != len(inputs[0]):
        raise ValueError(target)
    return _broadcast(node, [inputs[0], target], constants)


def _constant(node: Node, inputs: list[Shape], constants: list[Constant | None]) -> list[Shape]:
    value: Any = node.attributes["value"]
    return [value.shape] if value.shape else [(1,)]


def _axis(axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(axis)
    return axis % len(shape)


def _values(constant: Constant | None) -> list[int]:
    if constant is None or constant.values is None:
        raise ValueError("not constant")
    return list(constant.values)


FUNCTIONS = (
    "Abs", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Log", "Neg", "PRelu", "Reciprocal", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
"""Element-wise functions; INT8 models compute them in float (calibrate/classifier.py)."""
_UNARY = (
    *FUNCTIONS, "BatchNormalization", "Cast", "Clip", "DequantizeLinear", "Identity", "InstanceNormalization",
    "LayerNormalization", "QuantizeLinear", "Relu", "Softmax",
)  # fmt: skip
OPERATORS: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(("Add", "Div", "Greater", "Max", "Min", "Mul", "Pow", "Sub", "Where"), _broadcast),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _conv,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MatMul": _matmul,
    "Pad": _pad,
    "ReduceL2": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
"""Operator -> its shape rule. Other operators are refused in files that claim to be written by slimdeploy."""
