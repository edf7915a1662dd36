"""Element-wise ATen operators, and the graph operator that each becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from slimdeploy.toolchain.networks import aten_attention as attention
from slimdeploy.toolchain.networks.aten_several import parts, products
from slimdeploy.toolchain.networks.aten_values import (
    CONVERSIONS,
    COPIES,
    Constant,
    Expanded,
    argument,
    operator_of,
    shape_of,
)
from slimdeploy.toolchain.networks.operators.torch_modules import StochasticDepth

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.importer import Importer


COMMUTATIVE = ("add", "multiply", "maximum", "minimum")
"""Operators that may have the parameter first."""


BY_PIXEL = ("plus", "minus", "multiply_by", "divide_by")
"""Arithmetic that may be with an image of parameters."""


def activation(operator: str) -> Callable[[Importer, fx.Node], str]:
    def read(at: Importer, node: fx.Node) -> str:
        return at.add(node, operator, at.value(node, 0))

    return read


def clamp(at: Importer, node: fx.Node) -> str:
    return _clip(at, node, argument(node, 1, None), argument(node, 2, None))


def hardtanh(at: Importer, node: fx.Node) -> str:
    return _clip(at, node, argument(node, 1, -1), argument(node, 2, 1))


def clamp_max(at: Importer, node: fx.Node) -> str:
    return _clip(at, node, None, argument(node, 1, None))


def _clip(at: Importer, node: fx.Node, low: Any, high: Any) -> str:
    if low == 0 and high in (None, 6):
        return at.add(node, "relu" if high is None else "relu6", at.value(node, 0))
    if not isinstance(low, int | float | None) or not isinstance(high, int | float | None):
        raise at.refused(node, "a clamp is supported with numbers only")
    limits: dict[str, Any] = {"low": low, "high": high}
    given: dict[str, Any] = {name: float(limit) for name, limit in limits.items() if limit is not None}
    return at.add(node, "clip", at.value(node, 0), **given)


def prelu(at: Importer, node: fx.Node) -> str:
    slopes = int(shape_of(node.args[1])[0])
    return at.add(node, "prelu", at.value(node, 0), name=at.layer(node, weight=1), slopes=slopes)


def elu(at: Importer, node: fx.Node) -> str:
    if (argument(node, 2, 1), argument(node, 3, 1)) != (1, 1):
        raise at.refused(node, "elu is supported without scales only")
    return at.add(node, "elu", at.value(node, 0), alpha=float(argument(node, 1, 1)))


def celu(at: Importer, node: fx.Node) -> str:
    return at.add(node, "celu", at.value(node, 0), alpha=float(argument(node, 1, 1)))


def softplus(at: Importer, node: fx.Node) -> str:
    if argument(node, 1, 1) != 1:
        raise at.refused(node, "softplus is supported with beta=1 only")
    if argument(node, 2, 20) < 20:  # beyond it torch returns x, from 20 on the same in float32
        raise at.refused(node, "softplus is supported with a threshold of at least 20 only")
    return at.add(node, "softplus", at.value(node, 0))


def leaky_relu(at: Importer, node: fx.Node) -> str:
    return at.add(node, "leaky_relu", at.value(node, 0), slope=float(argument(node, 1, 0.01)))


def random_leaky_relu(at: Importer, node: fx.Node) -> str:
    """`rrelu`, which has the mean slope in eval mode (Xu et al., arXiv 1505.00853)."""
    slope = (float(argument(node, 1, 1 / 8)) + float(argument(node, 2, 1 / 3))) / 2
    return at.add(node, "leaky_relu", at.value(node, 0), slope=slope)


def gelu(at: Importer, node: fx.Node) -> str:
    by_tanh: dict[str, Any] = {"tanh": True} if node.kwargs.get("approximate") == "tanh" else {}
    return at.add(node, "gelu", at.value(node, 0), **by_tanh)


def add(at: Importer, node: fx.Node) -> str:
    return _arithmetic(at, node, "add", "plus", lambda n: (1.0, n))


def subtract(at: Importer, node: fx.Node) -> str:
    """a − b, which is a + (−1)·b unless b is a number or a parameter."""
    minuend, subtrahend = node.args[:2]
    if not isinstance(subtrahend, fx.Node) or isinstance(at.values.get(subtrahend), Constant):
        return _arithmetic(at, node, "", "minus", lambda n: (1.0, -n))
    _check_plain(at, node)
    if isinstance(minuend, fx.Node) and isinstance(at.values.get(minuend), Constant):
        return combined(at, node, "plus", minuend, subtrahend, _times(at, node, at.value(node, 1), -1))
    return at.difference(node, *_operands(at, node))


def negate(at: Importer, node: fx.Node) -> str:
    return _times(at, node, at.value(node, 0), -1)


def _times(at: Importer, node: fx.Node, value: str, factor: float) -> str:
    return at.add(node, "affine", value, factor=float(factor), offset=0.0)


def multiply(at: Importer, node: fx.Node) -> Any:
    if (found := products(at, node) or attention.weighted(at, node)) is not None:
        return found
    return _arithmetic(at, node, "multiply", "multiply_by", lambda n: (n, 0.0))


def divide(at: Importer, node: fx.Node) -> str:
    return _arithmetic(at, node, "divide", "divide_by", lambda n: (1 / n, 0.0))


def power(at: Importer, node: fx.Node) -> str:
    exponent = node.args[1]
    if isinstance(exponent, int | float):
        return _power(at, node, exponent)
    return _arithmetic(at, node, "", "power_by")


def power_of(exponent: float) -> Callable[[Importer, fx.Node], str]:
    def read(at: Importer, node: fx.Node) -> str:
        return _power(at, node, exponent)

    return read


def _power(at: Importer, node: fx.Node, exponent: float) -> str:
    return at.add(node, "power", at.value(node, 0), exponent=float(exponent))


def larger(at: Importer, node: fx.Node) -> str:
    return _arithmetic(at, node, "maximum", "at_least")


def smaller(at: Importer, node: fx.Node) -> str:
    return _arithmetic(at, node, "minimum", "at_most")


def add_product(at: Importer, node: fx.Node) -> str:
    """`addcmul` of an offset, a factor and a value."""
    offset, factor, value = node.args[:3]
    constants = [isinstance(at.values.get(one), Constant) for one in (offset, factor)]  # type: ignore[arg-type]
    if not all(constants) or node.kwargs.get("value", 1) != 1:
        raise at.refused(node, "addcmul is supported for two parameters and an image")
    scaled = combined(at, node, "multiply_by", factor, value, at.value(node, 2))
    return combined(at, node, "plus", offset, value, scaled)


def subtract_from(at: Importer, node: fx.Node) -> str:
    return _arithmetic(at, node, "", "", lambda n: (-1.0, n))


def _arithmetic(
    at: Importer,
    node: fx.Node,
    of_values: str,
    with_constant: str,
    by: Callable[[float], tuple[float, float]] | None = None,
) -> str:
    """Arithmetic of two values, a value and a parameter, or a value and a number (factor and offset from
    `by`).
    """
    name, second = operator_of(node), node.args[1]
    _check_plain(at, node)
    if by and isinstance(second, int | float):
        if name == "div" and second == 0:
            raise at.refused(node, "div by 0")
        factor, offset = by(float(second))
        return at.add(node, "affine", at.value(node, 0), factor=factor, offset=offset)
    constants = [i for i in (0, 1) if isinstance(at.values.get(node.args[i]), Constant)]  # type: ignore[arg-type]
    if with_constant and (constants == [1] or (constants == [0] and of_values in COMMUTATIVE)):
        constant, other = node.args[constants[0]], node.args[1 - constants[0]]
        return combined(at, node, with_constant, constant, other, at.value(node, 1 - constants[0]))
    if constants or not of_values:
        raise at.refused(node, f"{name} of these two isn't supported")
    return at.add(node, of_values, *_operands(at, node))


def _check_plain(at: Importer, node: fx.Node) -> None:
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode"):
        raise at.refused(node, f"{operator_of(node)} with alpha or rounding isn't supported")


def _operands(at: Importer, node: fx.Node) -> list[str]:
    """The two values of `node`. They may be expanded, because arithmetic expands them to the same shape."""
    found = [at.values.get(argument) for argument in node.args[:2]]  # type: ignore[arg-type]
    shapes = [value.shape for value in found if isinstance(value, Expanded)]
    if len(shapes) == 2 and list(map(max, *shapes)) != shape_of(node)[1:]:
        raise at.refused(node, f"{operator_of(node)} of two expanded images isn't supported")
    return [
        value.value if isinstance(value, Expanded) else at.value(node, i) for i, value in enumerate(found)
    ]


def combined(at: Importer, node: fx.Node, operator: str, constant: Any, other: Any, value: str) -> str:
    """Arithmetic of `value`, which has the layout of the argument `other`, with the argument `constant`, a
    parameter that has one value per channel, one value per pixel, or one value.
    """
    shape = shape_of(constant)
    axis = at.channel_axis(other)
    aligned = [1] * (len(shape_of(node)) - len(shape)) + shape
    if [i for i, n in enumerate(aligned) if n > 1] not in ([], [axis]):
        if operator not in BY_PIXEL or len(aligned) != 4 or axis != 1 or not _fits(aligned, shape_of(other)):
            raise at.refused(
                node, f"aten.{operator_of(node)} of a parameter that isn't one value a channel or pixel"
            )
        operator = f"{operator}_image"
    if operator == "plus" and _is_read_here_only(other) and _is_bias(at, at.values[constant], value):
        at.nodes[value] = at.nodes[value].with_attributes(bias=True)
        return value
    if (same := at.with_constants.get((operator, value, at.values[constant]))) is not None:
        return same  # not computed twice, with two copies of the parameter
    key, name = (operator, value, at.values[constant]), at.constant(constant)
    if axis == 1 and aligned[1] > 1 and shape_of(other)[1] == 1:  # gray images, by colour
        value = at.add(node, "concat", *[value] * int(aligned[1]))
    made = at.add(
        node, operator, value, name=name, shape=at.constants.shape(name), trained=at.is_trained(name)
    )
    at.with_constants[key] = made
    return made


def _fits(aligned: list[Any], image: list[Any]) -> bool:
    """Whether values of the shape `aligned` are for images of this shape."""
    return aligned[0] == 1 and all(n in (1, own) for n, own in zip(aligned[1:], image[1:], strict=True))


def _is_read_here_only(value: fx.Node) -> bool:
    """Whether one operator reads `value`, and nothing else the one of which it may be a copy."""
    while operator_of(value) in (*COPIES, *CONVERSIONS) and len(value.users) == 1:
        value = value.args[0]  # type: ignore[assignment]
    return len(value.users) == 1


def _is_bias(at: Importer, constant: Constant, value: str) -> bool:
    """Whether `constant` is the bias of the layer that made `value`, as in
    conv2d(x, weight) + bias.view(1, -1, 1, 1).
    """
    layer, name = at.nodes.get(value), constant.name
    if layer is None or layer.operator not in ("conv", "linear") or layer.attributes["bias"]:
        return False
    plain = constant.computed_by is None and at.is_trained(name)
    return plain and name == f"{value}.bias" and at.constants.shape(name) == [layer.attributes["out"]]


def gated_linear_unit(at: Importer, node: fx.Node) -> str:
    """`glu`: the first half of the channels times the sigmoid of the second one."""
    channels, half = int(shape_of(node.args[0])[1]), int(shape_of(node)[1])
    if 2 * half != channels:
        raise at.refused(node, "glu is supported along the channels only")
    first, gate = parts(at, node, at.value(node, 0), 2, half)
    return at.add(node, "multiply", first, at.add(node, "sigmoid", gate))


def dropout(at: Importer, node: fx.Node) -> str:
    share = float(argument(node, 1, 0.5))
    if at.class_of_module(node) == StochasticDepth.__name__:
        return at.add(node, "stochastic_depth", at.value(node, 0), share=share)
    channels: dict[str, Any] = {"channels": True} if operator_of(node) == "feature_dropout" else {}
    return at.add(node, "dropout", at.value(node, 0), share=share, **channels)
