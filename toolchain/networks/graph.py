"""A network as data: nodes in order of execution, each with an operator, inputs and attributes. No torch.

The torch module, the ONNX file, costs, channel groups and surgery are all derived from it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.operators import OPERATORS, Operator, Shape

INPUT = "images"
IMAGE_CHANNELS = (1, 3)
"""The numbers of channels that images can have: gray or colour."""
MINIMUM_SIZE = 8
"""Smallest image side accepted, in pixels."""
MAX_NODES, MAX_NUMBER = 10_000, 1 << 20
"""Upper limits for networks read from files, which may be damaged; larger ones could not be trained."""


@dataclass(frozen=True)
class Node:
    """One operator call. `name` is also the name of its output and the prefix of its parameters.

    `attributes` contain numbers, booleans, strings and lists of them; each operator's file defines its own.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def op(self) -> Operator:
        return OPERATORS[self.operator]

    def with_attributes(self, **changes: Any) -> Node:
        return replace(self, attributes={**self.attributes, **changes})


@dataclass(frozen=True)
class Graph:
    """An image classifier: images (N, image_channels, size, size) in; the last node returns logits
    (N, classes).

    `image_channels` is 3, or 1 for gray images. `origin` tells where the network came from:
    `{"arch": "resnet50", "stem": "cifar-pool"}`. Raises SlimdeployError for nodes that contradict each other.
    """

    nodes: tuple[Node, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)
    image_channels: int = 3

    def __post_init__(self) -> None:
        if self.image_channels not in IMAGE_CHANNELS:
            raise SlimdeployError(f"images have 3 channels, or 1, not {self.image_channels!r}")
        if not 0 < len(self.nodes) <= MAX_NODES:
            raise SlimdeployError(f"a network has 1 to {MAX_NODES} nodes, not {len(self.nodes)}")
        known = {INPUT}
        for node in self.nodes:
            _check_node(node, known)
            known.add(node.name)
        if self.channels[self.output] < 1 or not self._is_flat(self.output):
            raise SlimdeployError(f"{self.output}: the last node must give (N, classes) logits")
        if not any(node.operator == "conv" for node in self.nodes):
            raise SlimdeployError("the network has no convolution: slimdeploy works on CNNs")

    def __repr__(self) -> str:
        return f"Graph({self.arch}, {len(self.nodes)} nodes)"

    def __hash__(self) -> int:  # attributes can be compared, but not hashed
        return hash(tuple((node.name, node.operator, node.inputs) for node in self.nodes))

    @property
    def output(self) -> str:
        return self.nodes[-1].name

    @property
    def classes(self) -> int:
        return self.channels[self.output]

    @property
    def arch(self) -> str:
        """The name of the built-in architecture, or where the network was imported from."""
        return str(self.origin.get("arch", "custom"))

    @functools.cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @functools.cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """Value -> the nodes that read it, in order."""
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return dict(found)

    @functools.cached_property
    def channels(self) -> dict[str, int]:
        """Value -> its number of channels. Raises SlimdeployError if a node can't read its inputs."""
        found = {INPUT: self.image_channels}
        for node in self.nodes:
            found[node.name] = node.op.channels(node, [found[name] for name in node.inputs])
        return found

    def shapes(self, size: int) -> dict[str, Shape]:
        """Value -> (channels, height, width) or (channels,) for images of `size`×`size` pixels.

        Raises SlimdeployError for images too small to pass through, naming the node, and for those of another
        size than the one that the network is for (`size` in its origin).
        """
        if size < MINIMUM_SIZE:
            raise SlimdeployError(f"images of {size}×{size} are too small: the minimum is {MINIMUM_SIZE}")
        if (wanted := self.origin.get("size", size)) != size:
            raise SlimdeployError(
                f"the network expects another image size: {wanted}×{wanted} pixels, not {size}×{size}"
            )
        found: dict[str, Shape] = {INPUT: (self.image_channels, size, size)}
        for node in self.nodes:
            shape = node.op.shape(node, [found[name] for name in node.inputs])
            if min(shape) < 1:
                raise SlimdeployError(
                    f"images of {size}×{size} are too small: nothing is left at {node.name}"
                )
            found[node.name] = shape
        return found

    def producer(self, value: str) -> Node | None:
        """The node that produces `value`; None for the images."""
        return self.by_name.get(value)

    def only_consumer(self, value: str) -> Node | None:
        """The node that reads `value`, if there is exactly one; else None."""
        readers = self.consumers.get(value, [])
        return readers[0] if len(readers) == 1 else None

    @functools.cached_property
    def single_pixels(self) -> set[str]:
        """The images that have 1×1 pixels whatever the size of the network's input."""
        heights: dict[str, int] = {}
        """Of the images with a width of one pixel."""
        for node in self.nodes:
            pools = node.operator == "adaptive_avg_pool" and max(node.attributes["size"]) == 1
            if pools or node.operator == "global_max_pool":
                heights[node.name] = 1
            elif heights.keys() >= set(node.inputs):
                combine = sum if node.operator == "stack" else max
                heights[node.name] = combine(heights[name] for name in node.inputs)
                if node.operator == "crop":
                    heights[node.name] -= sum(node.attributes["margins"])
        return {name for name, height in heights.items() if height == 1}

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        return replace(self, nodes=tuple(nodes))

    def _is_flat(self, value: str) -> bool:
        """Whether `value` is a vector: the output of a flatten or of a linear layer."""
        node = self.producer(value)
        if node is None:
            return False
        if node.operator in ("flatten", "linear"):
            return not node.attributes.get("pixels")
        keeps = node.op.elementwise or node.operator in ("batchnorm", "layer_norm", "concat", "slice")
        return keeps and self._is_flat(node.inputs[0])

    def to_json(self) -> dict[str, Any]:
        gray = {"image_channels": self.image_channels} if self.image_channels != 3 else {}
        return {
            "origin": dict(self.origin),
            **gray,
            "nodes": [
                {
                    "name": node.name,
                    "operator": node.operator,
                    "inputs": list(node.inputs),
                    "attributes": dict(node.attributes),
                }
                for node in self.nodes
            ],
        }

    def digest(self) -> str:
        """SHA-256 of the graph's description: equal only for equal networks."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Graph:
        """Raises KeyError, TypeError, ValueError or SlimdeployError if the document is not a network."""
        nodes = [
            Node(str(n["name"]), str(n["operator"]), tuple(map(str, n["inputs"])), dict(n["attributes"]))
            for n in document["nodes"]
        ]
        return cls(tuple(nodes), dict(document["origin"]), document.get("image_channels", 3))


def needed_for(output: str, nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Those of `nodes`, in order, from which `output` is computed."""
    needed, found = {output}, []
    for node in reversed(list(nodes)):
        if node.name in needed:
            needed.update(node.inputs)
            found.append(node)
    return tuple(reversed(found))


def _check_node(node: Node, known: set[str]) -> None:
    OPERATORS.check(node.operator)
    if node.name in known:
        raise SlimdeployError(f"two nodes are called {node.name!r}")
    if not all(node.name.split(".")):
        raise SlimdeployError(f"{node.name!r} can't be the name of a node")
    if missing := [name for name in node.inputs if name not in known]:
        raise SlimdeployError(f"{node.name} reads {missing[0]!r}, which no node before it makes")
    least, most = node.op.arity
    if not least <= len(node.inputs) <= (most or len(node.inputs)):
        raise SlimdeployError(f"{node.name}: {node.operator} can't read {len(node.inputs)} values")
    kinds = {**node.op.optional, **node.op.attributes}
    for name in {**node.op.attributes, **node.attributes}:
        if name not in kinds:
            raise SlimdeployError(f"{node.name}: {node.operator} has no attribute {name!r}")
        value = node.attributes.get(name)
        if not kinds[name](value):
            raise SlimdeployError(f"{node.name}: {name} can't be {value!r}")
    for name, value in node.attributes.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(n, int | float) and not abs(n) <= MAX_NUMBER for n in numbers):
            raise SlimdeployError(f"{node.name}: {name} is {value!r}")
