"""Parameters, buffers and constants of a program of torch.export, and what it computes of these alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from slimdeploy.toolchain.networks.aten_values import (
    CONVERSIONS,
    COPIES,
    Constant,
    operator_of,
    shape_of,
)

RESHAPES = (
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", *COPIES,
)  # fmt: skip
"""ATen operators after which a constant still is the module's tensor: its values are the same."""

FACTORIES = ("ones", "zeros", "full", "eye", "arange", "linspace", "scalar_tensor")
"""ATen operators that make a constant of numbers."""
TRANSPOSES = ("t", "numpy_T", "transpose", "permute")
"""ATen operators that swap the axes of a matrix."""

LAYERS = (
    "conv1d", "conv2d", "linear", "matmul", "mm", "addmm", "batch_norm", "group_norm", "layer_norm",
    "instance_norm", "prelu",
)  # fmt: skip
"""ATen operators whose parameters belong to one module."""
PARTS = ("weight", "bias", "running_mean", "running_var")
"""Names that these modules give their tensors."""


class ProgramConstants:
    """The constants of a program.

    A value that is computed of constants alone is a constant too: a weight that is standardised in every
    forward pass, or torch.ones(8). It is called like the largest tensor of which it is computed, and takes
    its place. What is used several times gets a new name for each further use.
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
        self.paths = {
            path for name in self.names for path in itertools.accumulate(name.split("."), "{}.{}".format)
        }
        """These names, and those of the modules around them."""
        self.trained = frozenset(signature.inputs_to_parameters.values())
        """Names of its parameters."""
        self._saved = self.trained | set(signature.buffers) - set(signature.non_persistent_buffers)
        """Names of what is in its state dict."""
        self.of: dict[fx.Node, Constant] = {}
        """Node of the program -> the constant that it is."""
        self._read = {placeholders.get(node.name) for node in program.graph.nodes if node.users}
        """Names of the module's tensors that the program reads."""
        self._used: dict[str, Constant] = {}
        self._shapes: dict[str, list[int]] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in placeholders:
                self.of[node] = Constant(placeholders[node.name])
                self._shapes[placeholders[node.name]] = shape_of(node)
            elif node.op == "call_function" and (found := self._computed(node)):
                self.of[node] = found
                if writes(node):
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
        sources = _sources(node)
        if not sources and operator_of(node) in FACTORIES:
            self._shapes[node.name] = shape_of(node)
            return Constant(node.name, node)
        if not sources or not all(source in self.of for source in sources):
            return None

        def rank(source: fx.Node) -> tuple[int, bool, bool]:
            name = self.of[source].name
            return _count(source), name in self.trained, name.endswith(".weight")

        main = self.of[max(sources, key=rank)]
        reshaped = operator_of(node) in RESHAPES and main.computed_by is None
        return main if reshaped or _only_moves(node) else Constant(main.name, node)

    def _note_written(self, name: str) -> None:
        """The views of a tensor that is overwritten in part have computed values: w[:, :, 1, 1] = 0."""
        for node, constant in self.of.items():
            if constant.name == name:
                self.of[node] = Constant(name, node)

    def is_zero(self, node: fx.Node) -> bool:
        """Whether `node` is an image of zeros that the program makes."""
        found = self.of.get(node)
        if found is None or found.computed_by is None or self._made_of(found) or len(shape_of(node)) != 4:
            return False
        return not self._value(found).any()

    def integers(self, node: Any) -> list[int] | None:
        """The values of a vector of integers; None if it depends on the module's weights or the images."""
        found = self.of.get(node)
        if found is None or len(shape_of(node)) != 1 or self._made_of(found) & self._saved:
            return None
        values = self._value(found)
        return None if values.dtype.is_floating_point or values.dtype == torch.bool else values.tolist()

    def _value(self, constant: Constant) -> Tensor:
        """The value of a constant that doesn't depend on the module's weights."""
        given = self._program.constants
        if constant.computed_by is None:
            return given[constant.name]
        return self._run([constant.computed_by], given)[constant.computed_by]

    def transposed(self, node: fx.Node) -> fx.Node:
        """The node of the program for the matrix `node` with its axes swapped; it is added if missing."""
        if operator_of(node) in TRANSPOSES and self._is_rearranged(node):
            return node.all_input_nodes[0]
        return self._add(torch.ops.aten.t.default, node)

    def flattened(self, node: fx.Node) -> fx.Node:
        """The node of the program, which is added, for the values of `node` in one dimension."""
        return self._add(torch.ops.aten.flatten.using_ints, node)

    def _add(self, operator: torch._ops.OpOverload, node: fx.Node) -> fx.Node:
        with node.graph.inserting_after(node):
            found = node.graph.call_function(operator, (node,))
        found.meta["val"] = operator(node.meta["val"])
        self.of[found] = Constant(self.of[node].name, found)
        return found

    def use(self, node: fx.Node, taken: Container[str]) -> str:
        """A name for the tensor that `node` is, possibly reshaped, for a node of its own. Others have the
        names `taken`.
        """
        found = self.of[node]
        name = next(
            name
            for name in _numbered(found.name)
            if name not in taken and name not in self._used and self._is_free(name, found)
        )
        self._used[name] = found
        return name

    def _is_free(self, name: str, constant: Constant) -> bool:
        """Whether nothing else in the module is called so."""
        own = name == constant.name and name in self.names
        return name not in self._of_layers and (own or name not in self.paths)

    def use_in_layer(self, parts: Mapping[str, fx.Node], taken: Container[str]) -> str:
        """A name for the layer with these parameters, each with its own shape: name in a layer -> node. Other
        layers have the names `taken`.

        It is a module in which one of them has its name in a layer, or else the one in which one is
        computed, or else the name of the first.
        """
        found = {part: self._with_own_shape(node) for part, node in parts.items()}
        owners = {part: _owner(one.name) for part, one in found.items()}
        named = [owner for part, owner in owners.items() if owner and found[part].name == f"{owner}.{part}"]
        others = [
            *(owner for part, owner in owners.items() if found[part].computed_by),
            *(one.name for one in found.values()),
        ]
        first = next(filter(None, [*named, *others]))
        known = {*owners.values(), *(one.name for one in found.values() if one.name in self.names)}
        name = next(
            name
            for name in itertools.chain(named, _numbered(first))
            if name not in taken
            and (name in known or name not in self.paths)
            and all(self._may_be_called(f"{name}.{part}", constant) for part, constant in found.items())
        )
        self._used |= {f"{name}.{part}": constant for part, constant in found.items()}
        return name

    def _may_be_called(self, name: str, constant: Constant) -> bool:
        """Whether the tensor `name` of a layer can be `constant`, and the program reads no other one of this
        name.
        """
        own = name == constant.name or name not in self._read
        return own and self._used.get(name, constant) == constant

    def _with_own_shape(self, node: fx.Node) -> Constant:
        found = self.of[node]
        return found if shape_of(node) == self._shapes[found.name] else Constant(found.name, node)

    def shape(self, name: str) -> list[int]:
        """The shape of the tensor of this name, which isn't that of a reshaped use."""
        used = self._used.get(name, Constant(name))
        return shape_of(used.computed_by) if used.computed_by else self._shapes[used.name]

    def is_trained(self, name: str) -> bool:
        """Whether the tensor of this name is a parameter, or computed of one."""
        return (self._used[name].name if name in self._used else name) in self.trained

    def unsaved(self) -> list[str]:
        """Names of the tensors that don't depend on the module's state dict."""
        return [name for name, one in self._used.items() if not self._made_of(one) & self._saved]

    def changed(self) -> list[str]:
        """Names of the tensors that the module's state dict doesn't have so: computed ones, and copies."""
        new = [name for name, one in self._used.items() if one.computed_by or one.name != name]
        return [name for name in new if self._made_of(self._used[name]) & self._saved]

    def computed(self) -> list[str]:
        """Names of the tensors that are computed of parameters, and not only rearranged."""
        new = {name: one.computed_by for name, one in self._used.items() if one.computed_by}
        trained = [name for name in new if self._made_of(self._used[name]) & self.trained]
        return [name for name in trained if not self._is_rearranged(new[name])]

    def _is_rearranged(self, node: fx.Node) -> bool:
        """Whether `node` is a tensor of the module with its axes swapped, or in one dimension."""
        return (
            operator_of(node) in (*TRANSPOSES, "flatten")
            and self.of[node.all_input_nodes[0]].computed_by is None
        )

    def _made_of(self, constant: Constant) -> set[str]:
        """Names of the tensors of which `constant` is made."""
        if constant.computed_by is None:
            return {constant.name}
        needed = self._needed_for({constant.computed_by})
        return {self.of[node].name for node in needed if node.op == "placeholder"}

    def _needed_for(self, wanted: Iterable[fx.Node]) -> set[fx.Node]:
        """The constants `wanted`, and those of which they are computed."""
        found = set(wanted)
        for node in reversed(self.of):
            if node in found:
                found.update(_sources(node))
        return found

    def copied(self) -> list[str]:
        """Names of the parameters that are used several times with the same values."""
        uses = Counter(one for one in self._used.values() if one.name in self.trained)
        return list(dict.fromkeys(one.name for one, count in uses.items() if count > 1))

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
        names = {self.of[node].name for node in self._needed_for(wanted)}
        written = {node for node, constant in self.of.items() if writes(node) and constant.name in names}
        needed = self._needed_for(wanted | written)
        found: dict[fx.Node, Any] = {}
        read: dict[fx.Node, Tensor] = {}
        for node in self._program.graph.nodes:
            if node not in self.of:
                read |= {
                    one: found[one].clone() for one in node.all_input_nodes if one in wanted - read.keys()
                }
            elif node in needed and node.op == "placeholder":
                found[node] = tensors[self.of[node].name].clone()
            elif node in needed and operator_of(node) in CONVERSIONS:
                (source,) = _sources(node)
                kind = None if _only_moves(node) else node.meta["val"].dtype
                found[node] = found[source].to(kind) if kind else found[source]
            elif node in needed:
                arguments, options = fx.map_arg((node.args, node.kwargs), found.__getitem__)
                found[node] = node.target(*arguments, **options)
        return {node: found[node] for node in wanted} | read


def _sources(node: fx.Node) -> list[fx.Node]:
    """Of what `node` is computed: not of the image whose device and type a parameter gets."""
    return node.all_input_nodes[:1] if operator_of(node) in CONVERSIONS else node.all_input_nodes


def _only_moves(node: fx.Node) -> bool:
    """Whether `node` is a conversion to the same type."""
    if operator_of(node) not in CONVERSIONS:
        return False
    return bool(_sources(node)[0].meta["val"].dtype == node.meta["val"].dtype)


def writes(node: fx.Node) -> bool:
    """Whether `node` is an operator in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _count(node: fx.Node) -> int:
    """How many values `node` has; of several tensors, the first."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, tuple | list) and value else value
    return first.numel() if isinstance(first, Tensor) else 0


def _owner(name: str) -> str:
    """The module of the tensor `name`."""
    module, of_parametrize, _ = name.partition(".parametrizations.")
    return module if of_parametrize else name.rpartition(".")[0]


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))
