"""Run a graph as a torch module."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks import operators
from slimdeploy.toolchain.networks.graph import INPUT, Graph, Node
from slimdeploy.toolchain.networks.operators.base import tensor_name
from slimdeploy.toolchain.networks.residual import main_branches

KEEP_NO_OUTPUT = ("conv", "linear", "batchnorm", "add", "concat")
"""Operators whose gradient doesn't need their output, so that the next operator may overwrite it."""


class _Step:
    """One call: the path of the function, its inputs, and the values that are not needed afterwards."""

    def __init__(self, where: Mapping[str, Any], key: str, node: Node, done: tuple[str, ...]) -> None:
        self.where, self.key, self.done = where, key, done
        self.inputs, self.output = node.inputs, node.name


class _WithTensor:
    """A function whose last argument is a tensor, looked up at each call, since it may be replaced."""

    def __init__(self, container: nn.Module, key: str, function: Callable[..., Tensor]) -> None:
        self.container, self.key, self.function = container, key, function

    def __call__(self, *values: Tensor) -> Tensor:
        return self.function(*values, getattr(self.container, self.key))


class GraphNetwork(nn.Module):
    """Image classifier: (N, C, H, W) float → (N, classes) logits, as described by `graph`.

    Parameters are named after their nodes, so state dicts can be exchanged with the original network.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._steps: list[_Step] = []
        places: dict[str, tuple[Mapping[str, Any], str]] = {}
        for node, done in _with_last_uses(graph):
            self._place(node, places)
            self._steps.append(_Step(*places[node.name], node, done))

    def _place(self, node: Node, places: dict[str, tuple[Mapping[str, Any], str]]) -> None:
        """Make the function of `node`, and note where it is found, unless this is done."""
        if node.name in places:
            return
        made = node.op.run(node, inplace=_may_overwrite(self.graph, node))
        if own := node.op.tensors(node).get(""):
            if layer := self.graph.by_name.get(node.name.rpartition(".")[0]):
                self._place(layer, places)  # first, since it becomes the parent of the tensor
            made = _WithTensor(*_attach(self, node.name, _parameter(own)), made)
        if isinstance(made, nn.Module):
            # Looked up at each call: the module may be replaced.
            container, key = _attach(self, node.name, made)
            places[node.name] = container._modules, key
        else:
            places[node.name] = {node.name: made}, node.name

    def forward(self, images: Tensor) -> Tensor:
        values = {INPUT: images}
        for step in self._steps:
            result = step.where[step.key](*[values[name] for name in step.inputs])
            for name in step.done:
                del values[name]
            values[step.output] = result
        return result

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Parameters and buffers of a node, by their names in the operator."""
        node = self.graph.by_name[name]
        return {part: operator.attrgetter(tensor_name(name, part))(self) for part in node.op.tensors(node)}

    def weight(self, name: str) -> Tensor:
        """The weight of a convolution (O, I, k, k), of a linear layer (O, I), or γ of a BN (C,)."""
        weight = self.get_submodule(name).weight
        assert isinstance(weight, Tensor), name
        return weight

    def batchnorms(self) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
        """All BN modules, in order."""
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def build_network(graph: Graph, *, seed: int | None = None) -> GraphNetwork:
    """A network with random weights, which depend only on `seed`.

    He initialisation (fan-out). The BN that ends a residual branch gets γ = 0, so that every block starts as
    its shortcut (Goyal et al., arXiv 1706.02677, section 5.1): otherwise short trainings at high learning
    rates diverge.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        network = GraphNetwork(graph)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for node in main_branches(graph).values():
            if node.operator == "batchnorm" and node.attributes["affine"]:
                nn.init.zeros_(network.weight(node.name))
    return network


def _attach(root: nn.Module, name: str, part: nn.Module | Tensor) -> tuple[nn.Module, str]:
    """Add a module, parameter or buffer to `root` as `name`, in parents that are created if missing.

    Returns its parent and its name there. Raises SlimdeployError if the name is taken.
    """
    *parents, key = name.split(".")
    container = root
    try:
        for parent in parents:
            if parent not in container._modules:
                container.add_module(parent, nn.Module())
            container = container.get_submodule(parent)
        if key in container._modules:  # torch would replace the module
            raise KeyError(f"other nodes are inside {key}")
        if isinstance(part, nn.Module):
            container.add_module(key, part)
        elif isinstance(part, nn.Parameter):
            container.register_parameter(key, part)
        else:
            container.register_buffer(key, part)
    except KeyError as error:  # from torch too: the parent has an attribute of this name
        raise SlimdeployError(f"{name!r} can't be the name of a node: {error.args[0]}") from error
    return container, key


def _parameter(tensor: operators.Tensor) -> Tensor:
    """Ones: a parameter, or a buffer if it isn't trained."""
    values = torch.ones(tensor.shape)
    return nn.Parameter(values) if tensor.trained else values


def _may_overwrite(graph: Graph, node: Node) -> bool:
    producer = graph.producer(node.inputs[0])
    return (
        producer is not None
        and producer.operator in KEEP_NO_OUTPUT
        and graph.only_consumer(producer.name) is node
    )


def _with_last_uses(graph: Graph) -> list[tuple[Node, tuple[str, ...]]]:
    """Each node with the values that no later node reads."""
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    return [
        (node, tuple(name for name in dict.fromkeys(node.inputs) if last[name] == node.name))
        for node in graph.nodes
    ]
