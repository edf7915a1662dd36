"""What an operator says of itself: shapes, parameters, how it runs, ONNX nodes, what becomes of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.registry import Registry

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node

Shape = tuple[int, ...]
"""(channels, height, width) of an image, (channels,) of a vector; without the batch."""
Arrays = Mapping[str, np.ndarray]
"""The tensors of one node, by the names that Operator.tensors gives them."""


@dataclass(frozen=True)
class Tensor:
    """One parameter or buffer. `axes` says for each dimension whether it counts the node's `output` or
    `input` channels; "" for neither.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    trained: bool = True


def tensor_name(node: str, part: str) -> str:
    """The name in the state dict of a node's tensor `part`; "" is a node that is a tensor itself."""
    return f"{node}.{part}" if part else node


class Ties(Protocol):
    """Classes of channels that can only be removed together, while they are found."""

    def new(self, count: int) -> np.ndarray:
        """Identifiers (count,) of channels that a node makes."""
        ...

    def tie(self, first: np.ndarray, second: np.ndarray, *, summed: bool = False) -> None:
        """Channel i of one goes with channel i of the other; `summed` where the values are added."""
        ...

    def fix(self, channels: np.ndarray) -> None:
        """None of these channels can be removed."""
        ...


class OnnxNodes(Protocol):
    """Where an operator writes its ONNX nodes."""

    opset: int

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        ...

    def constant(self, name: str, values: np.ndarray | np.generic) -> str:
        """Add an initializer; returns its name."""
        ...


def count(value: Any) -> bool:
    """An attribute that is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def index(value: Any) -> bool:
    """A whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def steps(value: Any) -> bool:
    """Two whole numbers from 1, vertical and horizontal."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(count, value))


def margin(value: Any) -> bool:
    """Two whole numbers from 0, vertical and horizontal."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(index, value))


def number(value: Any) -> bool:
    """A finite number from 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def signed(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


class Operator:
    """The defaults are those of an operator that works on each value by itself: same shape, no parameters,
    channels passed on one by one.
    """

    attributes: Mapping[str, Callable[[Any], bool]] = MappingProxyType({})
    """Name of each attribute that a node must have -> whether a value is one."""
    optional: Mapping[str, Callable[[Any], bool]] = MappingProxyType({})
    """The same of those that it may have."""
    arity: tuple[int, int | None] = (1, 1)
    """Least and most inputs; None: any number."""
    idempotent = False
    """Whether doing it twice is doing it once."""
    elementwise = False
    """Whether each value of the output comes from the value at the same place of the inputs."""

    def reads_all(self, node: Node) -> bool:
        """Whether every output channel reads all input channels, as a dense convolution does."""
        return False

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        """Output channels; raises SlimdeployError where the inputs' don't fit."""
        return inputs[0]

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        """Output shape, sides below 1 where nothing is left. Raises SlimdeployError where it has none."""
        return inputs[0]

    def tensors(self, node: Node) -> dict[str, Tensor]:
        """Parameters and buffers by name, in the order of the state dict; see tensor_name."""
        return {}

    def macs(self, node: Node, output: Shape) -> int:
        """Multiply-accumulates for one image."""
        return 0

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        """A torch function, or a module that holds the tensors; with a tensor called "" a function that gets
        it as its last argument. `inplace`: the input may be overwritten.
        """
        raise NotImplementedError(node.operator)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        """Write the ONNX nodes; `shape` is the first input's. Returns the output's name."""
        raise NotImplementedError(node.operator)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        """Identifiers of the output channels, from those of the inputs' channels."""
        return inputs[0]

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        """Attributes that change when only the channels at True of the masks are left."""
        return {}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        """(channels,) float64: what each output channel is, everywhere and for every image, once the
        `removed` ones have γ = 0 (without BN: filters of 0); NaN where it isn't constant.

        `inputs` are the same of the inputs. At the border of padded windows it is taken as inside.
        """
        return inputs[0]


OPERATORS: Registry[Operator] = Registry("operator", Operator)


def pair(node: Node, name: str) -> tuple[int, int]:
    """The attribute `name` as (vertical, horizontal)."""
    first, second = node.attributes[name]
    return int(first), int(second)


def window(
    size: int, kernel: int, stride: int, padding: int, dilation: int = 1, *, ceil: bool = False
) -> int:
    """Side of what a sliding window gives, by torch's rule; below 1 where it doesn't fit once."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if room < 0:
        return 0
    steps = -(-room // stride) if ceil else room // stride
    if ceil and steps * stride >= size + padding:  # a window that starts in the padding doesn't count
        steps -= 1
    return steps + 1


def sides(node: Node, shape: Shape) -> tuple[int, int, int]:
    """(channels, height, width); raises SlimdeployError where it is a vector."""
    if len(shape) != 3:
        raise SlimdeployError(f"{node.name}: {node.operator} needs an image, not a vector")
    return shape[0], shape[1], shape[2]
