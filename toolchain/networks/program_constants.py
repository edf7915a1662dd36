"""Parameters, buffers and constants of a program of torch.export, and what it computes of these alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.aten_values import Constant, operator_of, shape_of

RESHAPES = (
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "contiguous",
    "clone", "alias", "detach", "lift_fresh_copy",
)  # fmt: skip
"""ATen operators after which a constant still is the module's tensor: its values are the same."""

LAYERS = ("conv1d", "conv2d", "linear", "batch_norm", "group_norm", "layer_norm", "instance_norm", "prelu")
"""ATen operators whose parameters belong to one module."""
PARTS = ("weight", "bias", "running_mean", "running_var")
"""Names that these modules give their tensors."""


class ProgramConstants:
    """The constants of a program.

    A value that is computed of constants alone is a constant too: a weight that is standardised in every
    forward pass. It is called like the largest tensor of which it is computed, and takes its place, unless
    the tensor is used otherwise too: then it gets a new name.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        self._program = program
        placeholders = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.names = tuple(placeholders.values())
        """Names of all tensors of the module."""
        self.trained = frozenset(signature.inputs_to_parameters.values())
        """Names of its parameters."""
        self.of: dict[fx.Node, Constant] = {}
        """Node of the program -> the constant that it is."""
        self._used: dict[str, Constant] = {}
        self._shapes: dict[str, list[int]] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in placeholders:
                self.of[node] = Constant(placeholders[node.name])
                self._shapes[placeholders[node.name]] = shape_of(node)
            elif node.op == "call_function" and (found := self._computed(node)):
                self.of[node] = found
                if _writes(node):
                    self._note_written(found.name)
        layers = {
            self.of[one].name.rpartition(".")[0]
            for node in program.graph.nodes
            if node not in self.of and operator_of(node) in LAYERS
            for one in node.all_input_nodes
            if one in self.of and (operator_of(node) != "conv2d" or self.of[one].name in self.trained)
        }
        self._of_layers = {f"{layer}.{part}" for layer in layers for part in PARTS}
        """Names that layers need for their own tensors. A filter that isn't trained has a node of its own."""

    def _computed(self, node: fx.Node) -> Constant | None:
        sources = node.all_input_nodes
        if not sources or not all(source in self.of for source in sources):
            return None

        def rank(source: fx.Node) -> tuple[int, bool, bool]:
            name = self.of[source].name
            return _count(source), name in self.trained, name.endswith(".weight")

        main = self.of[max(sources, key=rank)]
        reshaped = operator_of(node) in RESHAPES and main.computed_by is None
        return main if reshaped else Constant(main.name, node)

    def _note_written(self, name: str) -> None:
        """The views of a tensor that is overwritten in part have computed values: w[:, :, 1, 1] = 0."""
        for node, constant in self.of.items():
            if constant.name == name:
                self.of[node] = Constant(name, node)

    def use(self, node: fx.Node) -> str:
        """The name of the tensor that `node` is, possibly reshaped, for a node of its own."""
        found = self.of[node]
        numbered = (f"{found.name}_{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([found.name], numbered) if self._is_free(name, found))
        self._used[name] = found
        return name

    def _is_free(self, name: str, constant: Constant) -> bool:
        """Whether `constant` can be used under this name. What isn't trained gets one for each use; the same
        parameter twice is refused as a shared weight.
        """
        if name in self._of_layers or (name != constant.name and name in self.names):
            return False
        return name not in self._used or (constant.name in self.trained and self._used[name] == constant)

    def use_as(self, name: str, node: fx.Node) -> None:
        """Use the tensor that `node` is, with its own shape, as the parameter `name` of a layer.

        Raises SlimdeployError if the layer has two values of it.
        """
        found = self.of[node]
        if shape_of(node) != self._shapes[found.name]:
            found = Constant(found.name, node)
        if self._used.setdefault(name, found) != found:
            raise SlimdeployError(f"{name} has several values in one forward pass: this isn't supported")

    def shape(self, name: str) -> list[int]:
        """The shape of the tensor of this name, which isn't that of a reshaped use."""
        used = self._used.get(name, Constant(name))
        return shape_of(used.computed_by) if used.computed_by else self._shapes[used.name]

    def is_trained(self, name: str) -> bool:
        """Whether the tensor of this name is a parameter, or computed of one."""
        return (self._used[name].name if name in self._used else name) in self.trained

    def computed(self) -> list[str]:
        """Names of the tensors whose place a computed value takes."""
        return [name for name, one in self._used.items() if one.computed_by or one.name != name]

    def tensors(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values of all constants by name, for a module with the tensors `own`."""
        given = {**self._program.constants, **own}
        found = {name: tensor for name, tensor in given.items() if isinstance(tensor, Tensor)}
        computed = {name: one.computed_by for name, one in self._used.items() if one.computed_by}
        values = self._run(computed.values(), found)
        plain = {name: found[one.name] for name, one in self._used.items() if not one.computed_by}
        return found | plain | {name: values[node] for name, node in computed.items()}

    @torch.no_grad()
    def _run(self, wanted: Iterable[fx.Node], tensors: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
        """The values of the nodes `wanted`, as the first operator outside of the constants reads them: later
        ones may overwrite them.
        """
        wanted = set(wanted)
        needed = wanted | {node for node in self.of if _writes(node)}
        for node in reversed(self.of):
            if node in needed:
                needed.update(node.all_input_nodes)
        found: dict[fx.Node, Any] = {}
        read: dict[fx.Node, Tensor] = {}
        for node in self._program.graph.nodes:
            if node not in self.of:
                read |= {
                    one: found[one].clone() for one in node.all_input_nodes if one in wanted - read.keys()
                }
            elif node in needed and node.op == "placeholder":
                found[node] = tensors[self.of[node].name].clone()
            elif node in needed:
                arguments, options = fx.map_arg((node.args, node.kwargs), found.__getitem__)
                found[node] = node.target(*arguments, **options)
        return read


def _writes(node: fx.Node) -> bool:
    """Whether `node` is an operator in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _count(node: fx.Node) -> int:
    """How many values `node` has; of several tensors, the first."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return first.numel() if isinstance(first, Tensor) else 0
