"""The table of architectures: how each is found by name, and how files describe a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.registry import Registry

DEFAULT = "resnet50"


Builder = Callable[..., Graph]
"""Makes the unpruned network for `classes`, or what further keywords say: for ResNets stem, channels,
shortcut_affine.
"""
ARCHITECTURES: Registry[Builder] = Registry("arch", Callable)


def is_imported(name: str) -> bool:
    """Whether the network is made elsewhere: `torchvision:NAME`, `timm:NAME` or `FILE.py:FUNCTION`."""
    return ":" in name


def build_graph(arch: str | None = None, *, classes: int = 10, **options: Any) -> Graph:
    """The graph of an architecture, without one that of the reference, ResNet-50; options that are None are
    left to its defaults. Raises SlimdeployError for names and values that it doesn't know.
    """
    given = {name: value for name, value in options.items() if value is not None}
    name = arch or DEFAULT
    builder = ARCHITECTURES.find(name)
    try:
        return builder(classes=classes, **given)
    except TypeError as error:  # an architecture without stems, for one
        raise SlimdeployError(f"{name} can't be built with {', '.join(given)}: {error}") from error


def read_network(document: dict[str, Any]) -> Graph:
    """The network that a file describes: as a graph or, in files of format 1, as a ResNet's channel
    configuration. Raises KeyError, TypeError, ValueError or SlimdeployError on anything else.
    """
    if "nodes" in document:
        return Graph.from_json(document)
    return build_graph(
        document["arch"],
        classes=int(document["classes"]),
        stem=document["stem"],
        channels=tuple(document["channels"]),
        shortcut_affine=bool(document["shortcut_affine"]),
    )
