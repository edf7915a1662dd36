"""Fit a graph to the widths of given tensors, or to another number of classes. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.graph import IMAGE_CHANNELS, INPUT, Graph, Node
from slimdeploy.toolchain.networks.operators.base import tensor_name

TensorShapes = Mapping[str, tuple[int, ...]]
"""Name in a state dict -> shape."""


def fit_to_tensors(graph: Graph, shapes: TensorShapes) -> Graph:
    """`graph` with the widths of the tensors, which may be pruned or have other classes. The tensors also
    decide whether a layer has a bias, a BN γ and β, and whether the images are gray.

    Raises SlimdeployError if a weight is missing or can't belong to the layer.
    """
    nodes = []
    image_channels = _image_channels(graph, shapes)
    channels = {INPUT: image_channels}
    for node in graph.nodes:
        found = _fitted(node, channels[node.inputs[0]], shapes)
        nodes.append(found)
        channels[node.name] = found.op.channels(found, [channels[name] for name in found.inputs])
    return replace(graph, nodes=tuple(nodes), image_channels=image_channels)


def _image_channels(graph: Graph, shapes: TensorShapes) -> int:
    """The channels that the first convolution reads, if it reads the images."""
    for node in graph.consumers[INPUT]:
        if node.operator == "conv" and node.attributes["groups"] == 1:
            inputs = _shape(node, "weight", shapes)[1]
            return inputs if inputs in IMAGE_CHANNELS else graph.image_channels
    return graph.image_channels


def _fitted(node: Node, inputs: int, shapes: TensorShapes) -> Node:
    if node.operator == "batchnorm":
        mean = _shape(node, "running_mean", shapes)
        return node.with_attributes(channels=mean[0], affine=f"{node.name}.weight" in shapes)
    if node.operator not in ("conv", "linear"):
        widths: dict[str, Any] = {"channels": inputs} if "channels" in node.attributes else {}
        if "shape" in node.attributes:
            widths = {"shape": list(_shape(node, "", shapes))}
        return node.with_attributes(**widths)
    weight = _shape(node, "weight", shapes)
    expected = node.op.tensors(node)["weight"].shape
    if len(weight) != len(expected) or weight[2:] != expected[2:]:
        raise SlimdeployError(f"{node.name}.weight has shape {weight}, expected {expected}")
    changes = {"out": weight[0], "bias": f"{node.name}.bias" in shapes}
    if node.operator == "linear":
        return node.with_attributes(**{"in": weight[1]}, **changes)
    groups = 1 if node.attributes["groups"] == 1 else inputs // weight[1]
    return node.with_attributes(**{"in": weight[1] * groups}, groups=groups, **changes)


def _shape(node: Node, part: str, shapes: TensorShapes) -> tuple[int, ...]:
    name = tensor_name(node.name, part)
    if name not in shapes:
        raise SlimdeployError(f"{name} is missing")
    return tuple(shapes[name])


def classifier_of(graph: Graph) -> Node:
    """The layer that produces the logits: the last one with weights, if nothing after it mixes channels."""
    value = graph.output
    while (node := graph.producer(value)) is not None:
        if node.operator in ("conv", "linear"):
            return node
        if len(node.inputs) > 1:
            break
        value = node.inputs[0]
    raise SlimdeployError(f"{graph.arch}: no single layer produces its logits: its classes can't be changed")


def with_classes(graph: Graph, classes: int) -> Graph:
    """`graph` for another number of classes."""
    last = classifier_of(graph)
    changed = last.with_attributes(out=classes)
    return replace(graph, nodes=tuple(changed if node is last else node for node in graph.nodes))
