"""`slimdeploy summary`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import RenderableType

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.formatting import count, facts_table, grid, short
from slimdeploy.toolchain.networks.cost import Cost, network_cost
from slimdeploy.toolchain.networks.layers import Conv, enumerate_layers
from slimdeploy.toolchain.networks.spec import NetworkSpec, network_spec
from slimdeploy.toolchain.options import IMAGE_SIDE
from slimdeploy.toolchain.paths import InputPath


@command("summary")
@click.argument("checkpoint", type=InputPath(), required=False)
@click.option(
    "--arch", default="resnet50", show_default=True, help="Network to describe where no CHECKPOINT is given."
)
@click.option("--stem", default="cifar-pool", show_default=True, help="cifar-pool, cifar or imagenet.")
@click.option("--classes", type=int, default=10, show_default=True, help="Classes that it tells apart.")
@click.option("--size", type=IMAGE_SIDE, help="Image side in pixels. [default: the checkpoint's, or 32]")
@click.option("--align", "alignment", type=click.IntRange(min=1), default=8, show_default=True,
              help="Widths are padded to a multiple of this in `padded MACs`.")  # fmt: skip
def summary(
    checkpoint: Path | None, arch: str, stem: str, classes: int, size: int | None, alignment: int
) -> Output:
    """Layers, channels, parameters, MACs and memory of CHECKPOINT, or of --arch unpruned.

    Memory is for one float32 image, by torchsummary's convention: the output of every module call, twice.
    """
    if checkpoint:
        from slimdeploy.toolchain.checkpoint import load_checkpoint

        info = load_checkpoint(checkpoint).info
        spec, size = info.spec, size or info.preprocessing.size
    else:
        spec, size = network_spec(arch, stem=stem, classes=classes), size or 32
    cost = network_cost(spec, size, alignment=alignment)
    return Output(_json(spec, size, cost), _text(spec, size, cost))


def _json(spec: NetworkSpec, size: int, cost: Cost) -> dict[str, object]:
    memory = cost.memory
    return {
        **spec.to_json(),
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


def _text(spec: NetworkSpec, size: int, cost: Cost) -> RenderableType:
    from rich.console import Group

    layers = enumerate_layers(spec, size)
    rows = [_row(conv) for conv in layers.convs()]
    fc = layers.classes * layers.classifier_in
    rows.append(
        ["fc", f"{layers.classifier_in} → {layers.classes}", "", "", count(fc + layers.classes), short(fc)]
    )
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
    title = f"{spec.arch}, stem {spec.stem}, {size}×{size}, {spec.classes} classes"
    return Group(grid(columns, rows, title=title), facts_table(totals))


def _row(conv: Conv) -> list[str]:
    stride = f" / {conv.stride}" if conv.stride > 1 else ""
    return [
        conv.name,
        f"{conv.in_channels} → {conv.out_channels}",
        f"{conv.kernel}×{conv.kernel}{stride}",
        f"{conv.out_size}×{conv.out_size}",
        count(conv.params),
        short(conv.macs),
    ]
