"""Parameters, buffers and constants of a program of torch.export, and what it computes of these alone."""

from __future__ import annotations

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
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in placeholders:
                self.of[node] = Constant(placeholders[node.name])
            elif node.op == "call_function" and (found := self._computed(node)):
                self.of[node] = found
                if _writes(node):
                    self._note_written(node)
        read = [
            (node, self.of[one])
            for node in program.graph.nodes
            for one in node.all_input_nodes
            if node not in self.of and one in self.of
        ]
        of_layers = {one.name for node, one in read if self._is_of_layer(node, one)}
        layers = {name.rpartition(".")[0] for name in of_layers}
        self._taken = of_layers | {one.name for _, one in read if one.computed_by is None}
        """Names of the tensors that are used as they are or by layers, whose parameters have fixed names."""
        self._parts = {f"{layer}.{part}" for layer in layers for part in PARTS}
        """Names that the layers may need for their own tensors."""

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

    def _is_of_layer(self, reader: fx.Node, constant: Constant) -> bool:
        """Whether `constant` is a parameter of the layer that reads it. A filter that isn't trained has its
        own node.
        """
        operator = operator_of(reader)
        return operator in LAYERS and (operator != "conv2d" or constant.name in self.trained)

    def _note_written(self, operator: fx.Node) -> None:
        """All views of what `operator` overwrites have computed values: w[:, :, 1, 1] = 0."""
        memory = _memory(operator.args[0])
        for node, constant in self.of.items():
            if _memory(node) == memory:
                self.of[node] = Constant(constant.name, node)

    def use(self, node: fx.Node) -> str:
        """The name of the tensor that `node` is, possibly reshaped, for a node of its own."""
        found = self.of[node]
        name = found.name
        taken = name in self._parts or (found.computed_by is not None and name in self._taken)
        if taken or self._used.get(name, found) != found:
            name = self._new_name(found)
        self._used[name] = found
        return name

    def _new_name(self, constant: Constant) -> str:
        """A name for one of several values of a tensor: the same if it is used again."""
        number, name = 2, f"{constant.name}_2"
        while name in self.names or self._used.get(name, constant) != constant:
            number += 1
            name = f"{constant.name}_{number}"
        return name

    def use_as(self, name: str, node: fx.Node) -> None:
        """Use the tensor that `node` is, with its own shape, as the parameter `name` of a layer.

        Raises SlimdeployError if the layer has two values of it.
        """
        found = self.of[node]
        if shape_of(node) != list(self._tensors()[found.name].shape):
            found = Constant(found.name, node)
        occupied = name != found.name and name in self.names
        if occupied or self._used.setdefault(name, found) != found:
            raise SlimdeployError(f"{name} has several values in one forward pass: this isn't supported")

    def is_trained(self, name: str) -> bool:
        """Whether the tensor of this name is a parameter, or computed of one."""
        return (self._used[name].name if name in self._used else name) in self.trained

    def computed(self) -> list[str]:
        """Names of the tensors whose place a computed value takes."""
        return [name for name, one in self._used.items() if one.computed_by or one.name != name]

    def tensors(self, own: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The values of all constants by name, for a module with the tensors `own`. Default: with those that
        it has been traced with.
        """
        found = self._tensors(own)
        computed = {name: one.computed_by for name, one in self._used.items() if one.computed_by}
        values = self._run(computed.values(), found)
        plain = {name: found[one.name] for name, one in self._used.items() if not one.computed_by}
        return found | plain | {name: values[node] for name, node in computed.items()}

    def _tensors(self, own: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        found = {**self._program.constants, **(self._program.state_dict if own is None else own)}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}

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


def _memory(node: Any) -> int | None:
    """A number that `node` has in common with its views."""
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _count(node: fx.Node) -> int:
    """How many values `node` has; of several tensors, the first."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return first.numel() if isinstance(first, Tensor) else 0
