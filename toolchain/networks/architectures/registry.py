"""The table of architectures: finding one by name, and reading networks from files."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.registry import Registry

DEFAULT = "resnet50"


Builder = Callable[..., Graph]
"""Builds the unpruned network for `classes`. Further keywords depend on the architecture; for ResNets: stem,
channels, shortcut_affine, image_channels.
"""
ARCHITECTURES: Registry[Builder] = Registry("arch", Callable)


def is_imported(name: str) -> bool:
    """Whether the network is imported: `torchvision:NAME`, `timm:NAME` or `FILE.py:FUNCTION`."""
    return ":" in name


def source_file(name: str) -> Path | None:
    """The user's file in `FILE.py:FUNCTION`; None for other networks."""
    path = name.rpartition(":")[0]
    return Path(path) if path.endswith(".py") else None


def refuse_arguments(arch: str | None, arguments: Collection[str]) -> None:
    """Raises SlimdeployError for `arguments`, which only functions of imported networks have."""
    if arguments:
        raise SlimdeployError(f"`arguments` is for imported networks; {arch or DEFAULT} is built in")


def build_graph(
    arch: str | None = None, *, classes: int = 10, image_channels: int = 3, **options: Any
) -> Graph:
    """The graph of an architecture, by default ResNet-50. Options that are None keep the defaults of the
    architecture. Raises SlimdeployError for unknown names and invalid values.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if image_channels != 3:  # an architecture without gray images need not know it
        given["image_channels"] = image_channels
    name = DEFAULT if arch is None else arch
    if name.endswith(".py"):
        raise SlimdeployError(f"`arch` {name}: name the function too, {name}:FUNCTION")
    builder = ARCHITECTURES.find(name)
    try:
        return builder(classes=classes, **given)
    except TypeError as error:  # e.g. an architecture without stems
        raise SlimdeployError(f"{name} can't be built with {', '.join(given)}: {error}") from error


def read_network(document: dict[str, Any]) -> Graph:
    """The network that a file describes: as a graph, or in files of format 1 as a ResNet's channel
    configuration. Raises KeyError, TypeError, ValueError or SlimdeployError for anything else.
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
