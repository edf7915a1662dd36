"""The graph of a network given by name or in a checkpoint. Built-in architectures need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimdeploy.toolchain.networks.architectures import build_graph, is_imported, refuse_arguments
from slimdeploy.toolchain.networks.graph import Graph


def network_graph(
    arch: str | None,
    *,
    arguments: Sequence[str],
    stem: str | None,
    classes: int,
    size: int,
    image_channels: int = 3,
) -> Graph:
    """The graph of the unpruned network that `network_options` name, for images with `image_channels`; an
    imported one may take only others.
    """
    if arch is None or not is_imported(arch):
        refuse_arguments(arch, arguments)
        return build_graph(arch, stem=stem, classes=classes, image_channels=image_channels)
    from slimdeploy.toolchain.models.named_networks import named_network, parse_arguments

    given = parse_arguments(arguments)
    network = named_network(
        arch, size=size, classes=classes, stem=stem, arguments=given, image_channels=image_channels
    )
    return network.graph


def network_or_checkpoint(
    checkpoint: Path | None,
    arch: str | None,
    *,
    arguments: Sequence[str],
    stem: str | None,
    classes: int,
    size: int | None,
) -> tuple[Graph, int]:
    """The graph in `checkpoint`, or of the network that `network_options` name, and the image side: as given,
    else the checkpoint's, else 32.
    """
    if checkpoint:
        from slimdeploy.toolchain.models.checkpoint import load_checkpoint

        info = load_checkpoint(checkpoint).info
        return info.graph, size or info.preprocessing.size
    size = size or 32
    return network_graph(arch, arguments=arguments, stem=stem, classes=classes, size=size), size
