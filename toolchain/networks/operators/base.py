"""The interface of operators: shapes, parameters, execution in torch, ONNX nodes, effect on channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.registry import Registry

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.graph import Node

Shape = tuple[int, ...]
"""(channels, height, width) of an image or (channels,) of a vector, without the batch."""
Arrays = Mapping[str, np.ndarray]
"""The tensors of one node, by their names in Operator.tensors."""


@dataclass(frozen=True)
class Tensor:
    """One parameter or buffer. `axes` tells for each dimension whether it is the node's `output` or `input`
    channels; "" for neither.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    trained: bool = True


def tensor_name(node: str, part: str) -> str:
    """The name of tensor `part` of a node in the state dict; part "": the node is itself a tensor."""
    return f"{node}.{part}" if part else node


class Ties(Protocol):
    """Collects which channels must be removed together."""

    def new(self, count: int) -> np.ndarray:
        """Identifiers (count,) of new channels."""
        ...

    def tie(self, first: np.ndarray, second: np.ndarray, *, summed: bool = False) -> None:
        """Tie channel i of `first` to channel i of `second`; `summed` if the values are added."""
        ...

    def fix(self, channels: np.ndarray) -> None:
        """Mark channels that can't be removed."""
        ...


class OnnxNodes(Protocol):
    """Receives the ONNX nodes of an operator."""

    opset: int

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        ...

    def reduce(self, operator: str, value: str, name: str, axes: list[int]) -> str:
        """Add a reduction that keeps the reduced dimensions; returns the name of its output."""
        ...

    def constant(self, name: str, values: np.ndarray | np.generic) -> str:
        """Add an initializer; returns its name."""
        ...


def count(value: Any) -> bool:
    """Whether an attribute is a whole number, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def index(value: Any) -> bool:
    """Whole number, at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def steps(value: Any) -> bool:
    """Two whole numbers, at least 1: vertical and horizontal."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(count, value))


def margin(value: Any) -> bool:
    """Two whole numbers, at least 0: vertical and horizontal."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(index, value))


def number(value: Any) -> bool:
    """Finite number, at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def signed(value: Any) -> bool:
    """Finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


class Operator:
    """An operator. The defaults are those of an element-wise one: same shape, no parameters, each channel
    depends on the same channel of the input.
    """

    attributes: Mapping[str, Callable[[Any], bool]] = MappingProxyType({})
    """Required attributes: name -> check of a value."""
    optional: Mapping[str, Callable[[Any], bool]] = MappingProxyType({})
    """Optional attributes: name -> check of a value."""
    arity: tuple[int, int | None] = (1, 1)
    """Minimum and maximum number of inputs; None: unlimited."""
    idempotent = False
    """Whether applying it twice equals applying it once."""
    elementwise = False
    """Whether each output value depends only on the values at the same position of the inputs."""
    sums_channels = False
    """Whether it adds its channels without weights: a removed one must be zero, another constant can't be
    absorbed.
    """

    def reads_all(self, node: Node) -> bool:
        """Whether every output channel depends on all input channels, as in a dense convolution."""
        return False

    def channels(self, node: Node, inputs: Sequence[int]) -> int:
        """Number of output channels; raises SlimdeployError if those of the inputs don't fit."""
        return inputs[0]

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        """Output shape; sides below 1 mean that nothing is left. Raises SlimdeployError for unsuitable
        inputs.
        """
        return inputs[0]

    def tensors(self, node: Node) -> dict[str, Tensor]:
        """Parameters and buffers by name, in the order of the state dict; see tensor_name."""
        return {}

    def macs(self, node: Node, output: Shape) -> int:
        """Multiply-accumulates for one image."""
        return 0

    def run(self, node: Node, *, inplace: bool) -> Callable[..., Any]:
        """A torch function, or a module with the tensors. If a tensor is called "", the function receives it
        as its last argument. `inplace`: the input may be overwritten.
        """
        raise NotImplementedError(node.operator)

    def write(self, node: Node, inputs: Sequence[str], to: OnnxNodes, arrays: Arrays, shape: Shape) -> str:
        """Write the ONNX nodes; `shape` is that of the first input. Returns the name of the output."""
        raise NotImplementedError(node.operator)

    def spread(self, node: Node, inputs: Sequence[np.ndarray], ties: Ties) -> np.ndarray:
        """Identifiers of the output channels, given those of the input channels."""
        return inputs[0]

    def cut(self, node: Node, inputs: Sequence[np.ndarray], output: np.ndarray) -> dict[str, Any]:
        """The attributes that change if only the channels that are True in the masks are kept."""
        return {}

    def constant(
        self, node: Node, inputs: Sequence[np.ndarray], arrays: Arrays, removed: np.ndarray
    ) -> np.ndarray:
        """(channels,) float64: the constant value of each output channel for every image if the `removed`
        channels have γ = 0 (without BN: zero filters); NaN if it isn't constant.

        `inputs` are the constants of the inputs. Borders of padded windows are treated like the inside.
        """
        return inputs[0]


OPERATORS: Registry[Operator] = Registry("operator", Operator)


def check_size(node: Node, image: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Raises SlimdeployError if height and width of `image` aren't the `wanted` ones."""
    if image != wanted:
        raise SlimdeployError(
            f"{node.name}: the network expects another image size: {image[0]}×{image[1]} pixels arrive here, "
            f"not {wanted[0]}×{wanted[1]}"
        )


def pair(node: Node, name: str) -> tuple[int, int]:
    """The attribute `name` as (vertical, horizontal)."""
    first, second = node.attributes[name]
    return int(first), int(second)


def window(
    size: int, kernel: int, stride: int, padding: int, dilation: int = 1, *, ceil: bool = False
) -> int:
    """Output side of a sliding window, as in torch; below 1 if the window doesn't fit."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if room < 0:
        return 0
    steps = -(-room // stride) if ceil else room // stride
    if ceil and steps * stride >= size + padding:  # a window that starts in the padding doesn't count
        steps -= 1
    return steps + 1


def equal_channels(node: Node, counts: Collection[int]) -> int:
    """The one of `counts`; raises SlimdeployError if they differ."""
    if len(set(counts)) > 1:
        raise SlimdeployError(
            f"{node.name}: {node.operator} needs equal channels, not {' and '.join(map(str, counts))}"
        )
    return next(iter(counts))


def resampled(node: Node, image: str, to: OnnxNodes, rows: np.ndarray, columns: np.ndarray) -> str:
    """The ONNX nodes that compute each row and each column as a weighted sum of those of `image`, with the
    weights `rows` (new height, height) and `columns` (new width, width): two matrix products.
    """
    across = to.constant(f"{node.name}.columns", columns.T.copy())
    down = to.constant(f"{node.name}.rows", rows)
    return to.node("MatMul", [down, to.node("MatMul", [image, across], f"{node.name}.across")], node.name)


def sides(node: Node, shape: Shape) -> tuple[int, int, int]:
    """(channels, height, width); raises SlimdeployError if it is a vector."""
    if len(shape) != 3:
        raise SlimdeployError(f"{node.name}: {node.operator} needs an image, not a vector")
    return shape[0], shape[1], shape[2]
