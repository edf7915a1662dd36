"""The closed set of operators, one file a kind: each says all that the rest of slimdeploy needs of it."""

from slimdeploy.toolchain.networks.operators import (
    activation,
    batchnorm,
    coefficients,
    concat,
    convolution,
    dropout,
    elementwise,
    flatten,
    linear,
    normalisation,
    padding,
    pooling,
    shuffle,
)
from slimdeploy.toolchain.networks.operators.base import OPERATORS, Operator, Shape, Tensor

__all__ = [
    "OPERATORS",
    "Operator",
    "Shape",
    "Tensor",
    "activation",
    "batchnorm",
    "coefficients",
    "concat",
    "convolution",
    "dropout",
    "elementwise",
    "flatten",
    "linear",
    "normalisation",
    "padding",
    "pooling",
    "shuffle",
]
