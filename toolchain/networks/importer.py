"""Walk through a program of torch.export and make the nodes of a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.aten import ANY_LAYOUT, LEAVES, POINTWISE, READERS
from slimdeploy.toolchain.networks.aten_values import (
    LAYOUTS,
    ChannelsLast,
    Constant,
    Tokens,
    argument,
    operator_of,
    pair,
    shape_of,
)
from slimdeploy.toolchain.networks.graph import INPUT, Graph, Node, needed_for
from slimdeploy.toolchain.networks.program_constants import ProgramConstants, writes

ENDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "log_softmax": lambda logits: logits.log_softmax(1),
    "sigmoid": torch.sigmoid,
}
"""ATen operators that may follow the logits; they are removed, since a classifier returns logits."""


@dataclass
class Importer:
    """Walks through a traced program and converts each operator to a node."""

    program: torch.export.ExportedProgram
    arch: str
    nodes: dict[str, Node] = field(default_factory=dict)
    """Name -> node."""
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """Node of the program -> its value: a name, several names, or a class of aten_values."""
    ending: str = ""
    """The one of ENDINGS after the logits."""
    with_constants: dict[tuple[str, str, Constant], str] = field(default_factory=dict)
    """Operator, value and constant -> the node that computes it."""
    stacks: dict[str, str] = field(default_factory=dict)
    """Layer that is called several times -> the `stack` of its inputs."""

    def __post_init__(self) -> None:
        self.constants = ProgramConstants(self.program)
        self.values |= self.constants.of
        self.calls = Counter(
            self.constants.of.get(node.args[1])
            for node in self.program.graph.nodes
            if node.op == "call_function" and can_be_stacked(node)
        )
        """How often each weight is applied to a vector or an image of one pixel."""

    def graph(self) -> Graph:
        output = next(node for node in self.program.graph.nodes if node.op == "output").args[0][0]
        logits = self._logits(output)
        needed = _needed_for(logits)
        image_channels = 0
        for node in self.program.graph.nodes:
            if node in self.constants.of:
                continue
            if node.op == "placeholder":
                self.values[node], image_channels = INPUT, int(node.meta["val"].shape[1])
            elif node.op == "call_function" and node in needed:
                self._call(node)
        wanted = self.values[logits]
        if not isinstance(wanted, str):
            raise SlimdeployError("the module's output isn't computed from the images")
        origin: dict[str, Any] = {"arch": self.arch}
        changed, unsaved = self.constants.changed(), self.constants.unsaved()
        origin |= {"computed": changed} if changed else {}
        origin |= {"unsaved": unsaved} if unsaved else {}
        return Graph(needed_for(wanted, self._in_order()), origin, image_channels)

    def _logits(self, output: fx.Node) -> fx.Node:
        """The input of the final one of ENDINGS, if there is one."""
        name = operator_of(output)
        if name not in ENDINGS or (name != "sigmoid" and output.args[1:2] not in ((1,), (-1,))):
            return output
        self.ending, logits = name, output.args[0]
        assert isinstance(logits, fx.Node)
        return logits

    def _call(self, node: fx.Node) -> None:
        if not isinstance(node.meta.get("val"), Tensor | list | tuple):
            return  # arithmetic on sizes and checks, not on pixels
        name = operator_of(node)
        reader = READERS.get(name)
        if reader is None:
            raise self.refused(node, f"aten.{name} isn't supported")
        inputs = [self.values.get(argument) for argument in node.all_input_nodes]
        kinds = {type(value) for value in inputs if not isinstance(value, Constant)}
        layout = next((one for one in LAYOUTS if one in kinds), None)
        if layout is None or reader in ANY_LAYOUT:
            self.values[node] = reader(self, node)
        elif kinds == {layout} and name in POINTWISE:
            shown = [value for value in inputs if isinstance(value, layout)]
            largest = max(shown, key=lambda value: getattr(value, "size", ()))  # others are repeated
            self.values[node] = replace(largest, value=str(reader(self, node)))
        else:
            raise self.refused(node, f"aten.{name} isn't supported where the channels come last")

    def refused(self, node: fx.Node, why: str) -> SlimdeployError:
        """The error for `node`, with the path of its module."""
        return SlimdeployError(f"{self._path(node) or 'the module'}: {why}")

    def class_of_module(self, node: fx.Node) -> str:
        """The class name of the module whose forward calls `node`."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][1]).rpartition(".")[2] if stack else ""

    def _path(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]) if stack else ""

    def add(self, node: fx.Node, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node, with a unique name unless one is given; returns the name."""
        wanted = name or self._free_name(node, operator)
        self.nodes[wanted] = Node(wanted, operator, inputs, attributes)
        return wanted

    def difference(self, node: fx.Node, first: str, second: str) -> str:
        """Add nodes for first − second."""
        return self.add(node, "add", first, self.add(node, "affine", second, factor=-1.0, offset=0.0))

    def call_stacked(self, node: fx.Node, operator: str, image: str, name: str, **attributes: Any) -> str:
        """One of several calls of a layer, on images of one pixel: its output. The images of all calls are
        stacked and become one call, so that the layer exists once and is trained and pruned as one.
        """
        if name not in self.stacks:
            self.stacks[name] = self.add(node, "stack")
            self.add(node, operator, self.stacks[name], name=name, **attributes)
        stack = self.nodes[self.stacks[name]]
        self.nodes[stack.name] = replace(stack, inputs=(*stack.inputs, image))
        above, calls = len(stack.inputs), self.calls[self.constants.of[node.args[1]]]  # type: ignore[index]
        return self.add(node, "crop", name, margins=[0, 0, above, calls - 1 - above])

    def _in_order(self) -> list[Node]:
        """The nodes in order of execution: a `stack` is behind its last input."""
        ordered: dict[str, Node] = {}
        waiting = list(self.nodes.values())
        while waiting:
            ready: list[Node] = []
            later: list[Node] = []
            for node in waiting:
                done = all(name == INPUT or name in ordered for name in node.inputs)
                (ready if done else later).append(node)
                if done:
                    ordered[node.name] = node
            if not ready:
                raise SlimdeployError(f"{later[0].name}: a layer that reads its own output isn't supported")
            waiting = later
        return list(ordered.values())

    def _free_name(self, node: fx.Node, operator: str) -> str:
        path, own = self._path(node), self.class_of_module(node).lower().replace("2d", "")
        base = path if path and own in LEAVES else f"{path}.{operator}" if path else operator
        name, number = base, 1
        while name in self.nodes or name in self.constants.paths:
            number += 1
            name = f"{base}.{number}"
        return name

    def value(self, node: fx.Node, index: int) -> str:
        """The value named by argument `index`."""
        argument = node.args[index]
        found = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if isinstance(found, Constant):
            raise self.refused(node, f"{node.target} of the parameter {found.name} isn't supported")
        if isinstance(found, LAYOUTS):
            return found.value
        if not isinstance(found, str):
            raise self.refused(node, f"{node.target} of something that isn't an image or a vector")
        return found

    def channel_axis(self, argument: Any) -> int:
        """The dimension of the channels in `argument` of a call."""
        return len(shape_of(argument)) - 1 if self.has_channels_last(argument) else 1

    def has_channels_last(self, argument: Any) -> bool:
        """Whether `argument` of a call is an image in the layout (N, H, W, C) or (N, H·W, C)."""
        return isinstance(self.values.get(argument), ChannelsLast | Tokens)

    def in_layout_of(self, argument: Any, value: str) -> Any:
        """`value` where the channels are as in `argument` of a call."""
        found = self.values.get(argument)
        return replace(found, value=value) if isinstance(found, ChannelsLast | Tokens) else value

    def constant(self, argument: Any) -> str:
        """The name of the parameter, buffer or constant given as `argument`."""
        return self.constants.use(argument, self.nodes)

    def is_trained(self, name: str) -> bool:
        return self.constants.is_trained(name)

    def is_called_again(self, node: fx.Node) -> bool:
        """Whether several calls of a layer, of which `node` is one, become one call."""
        return can_be_stacked(node) and self.calls[self.constants.of.get(node.args[1])] > 1  # type: ignore[arg-type]

    def layer(self, node: fx.Node, *, stacked: bool = False, **parts: int) -> str:
        """A name for the layer with the parameters given as arguments: name of each in a layer -> its index.
        Arguments that are omitted or None don't count. `stacked`: a node may have the name already.
        """
        given: dict[str, fx.Node] = {}
        for part, index in parts.items():
            argument = node.args[index] if len(node.args) > index else None
            if argument is None:
                continue
            if not isinstance(argument, fx.Node) or argument not in self.constants.of:
                raise self.refused(node, f"{node.target} without a parameter of its own called {part}")
            given[part] = argument
        return self.constants.use_in_layer(given, () if stacked else self.nodes)


def _needed_for(output: fx.Node) -> set[fx.Node]:
    """`output` and all of which it is computed: not what the module only keeps, such as statistics in a
    buffer.
    """
    needed = {output}
    for node in reversed(output.graph.nodes):
        if node in needed or (writes(node) and not needed.isdisjoint(_views(node))):
            needed.update([node, *node.all_input_nodes])
    return needed


def _views(node: fx.Node) -> Iterator[fx.Node]:
    """What an operator in place may change: its first argument, of which that may be a view, and so on."""
    while node.args and isinstance(first := node.args[0], fx.Node):
        yield first
        node = first


def can_be_stacked(node: fx.Node) -> bool:
    """Whether a call of a layer, on a vector or an image of one pixel, can become a part of a larger call."""
    name = operator_of(node)
    if name == "conv2d":
        padding = argument(node, 4, 0)
        one_pixel = shape_of(node.args[0])[2:] == shape_of(node.args[1])[2:] == [1, 1]
        return one_pixel and (isinstance(padding, str) or pair(padding) == [0, 0])
    return name == "linear" and len(shape_of(node)) == 2
