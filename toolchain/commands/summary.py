"""`slimdeploy summary`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import RenderableType

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.options import IMAGE_SIDE, check_network_options, network_options
from slimdeploy.toolchain.formatting import count, facts_table, grid, short
from slimdeploy.toolchain.models.graphs import network_or_checkpoint
from slimdeploy.toolchain.networks.architectures import channel_numbers
from slimdeploy.toolchain.networks.cost import Cost, network_cost
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import Layer, parameter_layers
from slimdeploy.toolchain.paths import InputPath


@command("summary")
@click.argument("checkpoint", type=InputPath(), required=False)
@network_options()
@click.option("--classes", type=click.IntRange(min=1), default=10, show_default=True,
              help="Number of classes, for --arch.")  # fmt: skip
@click.option("--size", type=IMAGE_SIDE, help="Image side in pixels. [default: the checkpoint's, or 32]")
@click.option("--align", "alignment", type=click.IntRange(min=1), default=8, show_default=True,
              help="Channel multiple to which widths are padded in `padded MACs`.")  # fmt: skip
def summary(
    checkpoint: Path | None, arch: str | None, arguments: tuple[str, ...], stem: str | None, classes: int,
    size: int | None, alignment: int,
) -> Output:  # fmt: skip
    """Show layers, channels, parameters, MACs and memory of CHECKPOINT, or of the unpruned --arch.

    Memory is for one float32 image and follows torchsummary: the output of every module call, counted twice.
    """
    check_network_options(checkpoint)
    graph, size = network_or_checkpoint(
        checkpoint, arch, arguments=arguments, stem=stem, classes=classes, size=size
    )
    cost = network_cost(graph, size, alignment=alignment)
    return Output(_json(graph, size, cost), _text(graph, size, cost))


def _json(graph: Graph, size: int, cost: Cost) -> dict[str, object]:
    memory = cost.memory
    return {
        **graph.origin,
        "classes": graph.classes,
        "channels": list(channel_numbers(graph)),
        "size": size,
        "params": cost.params,
        "macs": cost.macs,
        "padded_macs": cost.padded_macs,
        "alignment": cost.alignment,
        "module_calls": cost.module_calls,
        "memory_mb": {
            "input": memory.input,
            "activations": memory.activations,
            "params": memory.params,
            "total": memory.total,
        },
    }


def _text(graph: Graph, size: int, cost: Cost) -> RenderableType:
    from rich.console import Group

    rows = [_row(layer) for layer in parameter_layers(graph, size)]
    columns = ["layer", "channels", "kernel", "output", "parameters", "MACs"]
    memory = cost.memory
    totals = [
        ("parameters", count(cost.params)),
        ("MACs", short(cost.macs)),
        (f"MACs, widths padded to {cost.alignment}", short(cost.padded_macs)),
        ("module calls", count(cost.module_calls)),
        ("memory: input", f"{memory.input:.2f} MB"),
        ("memory: activations, forward and backward", f"{memory.activations:.2f} MB"),
        ("memory: parameters", f"{memory.params:.2f} MB"),
        ("memory: total", f"{memory.total:.2f} MB"),
    ]
    stem = f", stem {graph.origin['stem']}" if "stem" in graph.origin else ""
    title = f"{graph.arch}{stem}, {size}×{size}, {graph.classes} classes"
    return Group(grid(columns, rows, title=title), facts_table(totals))


def _row(layer: Layer) -> list[str]:
    image = layer.operator != "linear"
    stride = f" / {layer.stride[0]}" if max(layer.stride) > 1 else ""
    groups = f" in {layer.groups} groups" if layer.operator == "conv" and layer.groups > 1 else ""
    kernel = f"{_sides(layer.kernel)}{stride}{groups}" if layer.operator == "conv" else ""
    return [
        layer.name,
        f"{layer.in_channels} → {layer.out_channels}",
        kernel,
        _sides(layer.out_size) if image else "",
        count(layer.params),
        short(layer.macs),
    ]


def _sides(pair: tuple[int, int]) -> str:
    return f"{pair[0]}×{pair[1]}"
