"""Element-wise functions: activations, and those of arithmetic."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from slimdeploy.toolchain.networks.operators.base import (
    OPERATORS,
    Arrays,
    OnnxNodes,
    Operator,
    Shape,
    Tensor,
    count,
    flag,
    number,
    signed,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node

_CUBIC = 0.044715
"""Factor of x³ in GELU's approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""


class Activation(Operator):
    """A function of torch.nn.functional, or else of torch, by name, with its numpy implementation and its
    ONNX operator.
    """

    elementwise = True

    def __init__(
        self,
        function: str,
        values: Callable[[np.ndarray], np.ndarray],
        onnx: str,
        *,
        idempotent: bool = False,
        inplace: bool = False,
        **onnx_attributes: float,
    ) -> None:
        self.function, self.values, self.onnx = function, values, onnx
        self.onnx_attributes = onnx_attributes
        self.idempotent = idempotent
        self.may_overwrite = inplace

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch
        from torch.nn import functional

        function: Callable[..., Any] = getattr(functional, self.function, None) or getattr(
            torch, self.function
        )
        return functools.partial(function, inplace=True) if inplace and self.may_overwrite else function

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.node(self.onnx, inputs, node.name, **self.onnx_attributes)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):  # NaN marks values that are not constant
            return self.values(inputs[0])


class Relu6(Activation):
    """min(max(x, 0), 6)."""

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        bounds = [to.constant(f"relu6.{name}", np.float32(v)) for name, v in (("min", 0.0), ("max", 6.0))]
        return to.node("Clip", [*inputs, *bounds], node.name)


class Silu(Activation):
    """x · sigmoid(x). ONNX has an operator for it since opset 24."""

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        gate = to.node("Sigmoid", inputs, f"{node.name}.sigmoid")
        return to.node("Mul", [inputs[0], gate], node.name)


class LeakyRelu(Activation):
    """Attribute: slope."""

    attributes = MappingProxyType({"slope": number})

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(functional.leaky_relu, negative_slope=float(node.attributes["slope"]))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.node("LeakyRelu", inputs, node.name, alpha=float(node.attributes["slope"]))

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.where(inputs[0] < 0, float(node.attributes["slope"]) * inputs[0], inputs[0])


class Elu(Activation):
    """x, and α·(exp(x/s) − 1) below 0. Attribute: alpha. s is 1, or α for CELU (arXiv 1704.07483)."""

    attributes = MappingProxyType({"alpha": number})

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(getattr(functional, self.function), alpha=float(node.attributes["alpha"]))

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        return to.node(self.onnx, inputs, node.name, alpha=float(node.attributes["alpha"]))

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        alpha = float(node.attributes["alpha"])
        scale = alpha if self.function == "celu" else 1.0
        return np.where(inputs[0] < 0, alpha * np.expm1(np.minimum(inputs[0], 0) / scale), inputs[0])


class Clip(Activation):
    """Attributes: low and high, of which one may be omitted. min(max(x, low), high)."""

    optional = MappingProxyType({"low": signed, "high": signed})

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        low, high = _limits(node)
        return functools.partial(torch.clamp, min=low, max=high)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        bounds = [
            "" if value is None else to.constant(f"{node.name}.{name}", np.float32(value))
            for name, value in zip(("low", "high"), _limits(node), strict=True)
        ]
        return to.node("Clip", [*inputs, *(bounds if bounds[1] else bounds[:1])], node.name)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        low, high = _limits(node)
        return np.clip(inputs[0], low, high)


def _limits(node: Node) -> tuple[float | None, float | None]:
    return node.attributes.get("low"), node.attributes.get("high")


class Power(Activation):
    """x to the power of the attribute `exponent`. NaN for a negative x, unless the exponent is whole."""

    attributes = MappingProxyType({"exponent": signed})

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        import torch

        return functools.partial(torch.pow, exponent=node.attributes["exponent"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        x, name, exponent = inputs[0], node.name, float(node.attributes["exponent"])
        if exponent == 2:  # some runtimes compute Pow as exp(log(x)·n), for positive x only
            return to.node("Mul", [x, x], name)
        if abs(exponent) == 0.5:
            x = to.node("Sqrt", [x], f"{name}.root" if exponent < 0 else name)
        if exponent in (-1, -0.5):
            return to.node("Reciprocal", [x], name)
        if exponent == 0.5:
            return x
        return to.node("Pow", [x, to.constant(f"{name}.exponent", np.float32(exponent))], name)

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.power(inputs[0], float(node.attributes["exponent"]))
        return np.where(np.isfinite(values), values, np.nan)


class LogSigmoid(Activation):
    """−ln(1 + exp(−x))."""

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        x = to.node("Neg", [inputs[0]], f"{node.name}.negative")
        return to.node("Neg", [to.node("Softplus", [x], f"{node.name}.softplus")], node.name)


class PRelu(Activation):
    """x, and slope·x below 0. Attribute: slopes, their number: one per channel, or one for all."""

    attributes = MappingProxyType({"slopes": count})

    def tensors(self, node: Node) -> dict[str, Tensor]:
        slopes = node.attributes["slopes"]
        return {"weight": Tensor((slopes,), ("output" if slopes > 1 else "",))}

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch import nn

        return nn.PReLU(node.attributes["slopes"])

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        slopes = arrays["weight"].reshape(-1, *[1] * (len(shape) - 1))
        return to.node("PRelu", [*inputs, to.constant(f"{node.name}.slopes", slopes)], node.name)

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        return {"slopes": int(output.sum()) if node.attributes["slopes"] > 1 else 1}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return np.where(inputs[0] < 0, arrays["weight"] * inputs[0], inputs[0])


class Mish(Activation):
    """x · tanh(ln(1 + exp x)). ONNX has an operator for it since opset 18."""

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        x = to.node("Softplus", inputs, f"{node.name}.softplus")
        x = to.node("Tanh", [x], f"{node.name}.tanh")
        return to.node("Mul", [inputs[0], x], node.name)


class Gelu(Activation):
    """x · Φ(x), or with the optional attribute `tanh` its approximation x/2 · (1 + tanh(√(2/π)·(x +
    0.044715·x³))); written as basic operators before opset 20.
    """

    optional = MappingProxyType({"tanh": flag})

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        from torch.nn import functional

        return functools.partial(functional.gelu, approximate="tanh" if _by_tanh(node) else "none")

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        if to.opset >= 20:
            return to.node("Gelu", inputs, node.name, **({"approximate": "tanh"} if _by_tanh(node) else {}))
        x = (self._tanh if _by_tanh(node) else self._erf)(node, inputs[0], to)
        x = to.node("Add", [x, to.constant("gelu.one", np.float32(1))], f"{node.name}.add")
        x = to.node("Mul", [inputs[0], x], f"{node.name}.mul")
        return to.node("Mul", [x, to.constant("gelu.half", np.float32(0.5))], node.name)

    def _erf(self, node: Node, x: str, to: OnnxNodes) -> str:
        root = to.constant("gelu.root", np.float32(math.sqrt(2)))
        return to.node("Erf", [to.node("Div", [x, root], f"{node.name}.div")], f"{node.name}.erf")

    def _tanh(self, node: Node, x: str, to: OnnxNodes) -> str:
        cubic, factor = (
            to.constant(f"gelu.{name}", np.float32(value))
            for name, value in (("cubic", _CUBIC), ("factor", math.sqrt(2 / math.pi)))
        )
        squared = to.node("Mul", [x, x], f"{node.name}.squared")
        scaled = to.node("Mul", [squared, cubic], f"{node.name}.cubic")
        cubed = to.node("Mul", [scaled, x], f"{node.name}.cubed")
        inner = to.node("Add", [x, cubed], f"{node.name}.inner")
        return to.node("Tanh", [to.node("Mul", [inner, factor], f"{node.name}.scaled")], f"{node.name}.tanh")

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        return (_gelu_by_tanh if _by_tanh(node) else _gelu)(inputs[0])


def _by_tanh(node: Node) -> bool:
    return bool(node.attributes.get("tanh"))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def _hardsigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + 3, 0, 6) / 6


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def _selu(x: np.ndarray) -> np.ndarray:
    alpha, scale = 1.6732632423543772, 1.0507009873554805  # Klambauer et al., arXiv 1706.02515
    return scale * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _log(x: np.ndarray) -> np.ndarray:
    return np.log(np.where(x > 0, x, np.nan))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def _gelu_by_tanh(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + _CUBIC * x**3)))


OPERATORS["relu"] = Activation("relu", lambda x: np.maximum(x, 0), "Relu", idempotent=True, inplace=True)
OPERATORS["relu6"] = Relu6("relu6", lambda x: np.clip(x, 0, 6), "Clip", idempotent=True, inplace=True)
OPERATORS["silu"] = Silu("silu", lambda x: x * _sigmoid(x), "Sigmoid")
OPERATORS["hardswish"] = Activation("hardswish", lambda x: x * _hardsigmoid(x), "HardSwish")
OPERATORS["hardsigmoid"] = Activation("hardsigmoid", _hardsigmoid, "HardSigmoid", alpha=1 / 6, beta=0.5)
OPERATORS["sigmoid"] = Activation("sigmoid", _sigmoid, "Sigmoid")
OPERATORS["tanh"] = Activation("tanh", np.tanh, "Tanh")
OPERATORS["leaky_relu"] = LeakyRelu("leaky_relu", np.abs, "LeakyRelu")
OPERATORS["prelu"] = PRelu("prelu", np.abs, "PRelu")
OPERATORS["elu"] = Elu("elu", np.abs, "Elu")
OPERATORS["celu"] = Elu("celu", np.abs, "Celu")
OPERATORS["selu"] = Activation("selu", _selu, "Selu")
OPERATORS["softplus"] = Activation("softplus", _softplus, "Softplus")
OPERATORS["log_sigmoid"] = LogSigmoid("logsigmoid", lambda x: -_softplus(-x), "Softplus")
OPERATORS["abs"] = Activation("abs", np.abs, "Abs", idempotent=True)
OPERATORS["exp"] = Activation("exp", np.exp, "Exp")
OPERATORS["log"] = Activation("log", _log, "Log")
OPERATORS["sign"] = Activation("sign", np.sign, "Sign", idempotent=True)
OPERATORS["sin"] = Activation("sin", np.sin, "Sin")
OPERATORS["cos"] = Activation("cos", np.cos, "Cos")
OPERATORS["power"] = Power("pow", np.abs, "Pow")
OPERATORS["clip"] = Clip("hardtanh", np.abs, "Clip")
OPERATORS["mish"] = Mish("mish", lambda x: x * np.tanh(_softplus(x)), "Mish")
OPERATORS["gelu"] = Gelu("gelu", _gelu, "Gelu")
