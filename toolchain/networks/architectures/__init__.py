"""Built-in networks by name. A new one is one file and one entry in ARCHITECTURES."""

from slimdeploy.toolchain.networks.architectures import resnet
from slimdeploy.toolchain.networks.architectures.registry import (
    ARCHITECTURES,
    Builder,
    build_graph,
    is_imported,
    read_network,
    refuse_arguments,
    source_file,
)
from slimdeploy.toolchain.networks.graph import Graph

__all__ = [
    "ARCHITECTURES",
    "Builder",
    "build_graph",
    "channel_numbers",
    "is_imported",
    "read_network",
    "refuse_arguments",
    "resnet",
    "source_file",
]


def channel_numbers(graph: Graph) -> tuple[int, ...]:
    """The channel configuration of a built-in ResNet; for other networks the output channels of every
    convolution, in order.
    """
    config = resnet.channel_config(graph)
    if config is not None:
        return config.flat()
    return tuple(graph.channels[node.name] for node in graph.nodes if node.operator == "conv")
