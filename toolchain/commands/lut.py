"""`slimdeploy lut`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags
from slimdeploy.toolchain.commands.options import IMAGE_SIDE, check_network_options, network_options
from slimdeploy.toolchain.formatting import facts_table, percent
from slimdeploy.toolchain.latency.backend import LutOptions
from slimdeploy.toolchain.models.graphs import network_or_checkpoint
from slimdeploy.toolchain.paths import InputPath, OutputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.latency.measure import LutResult


@command("lut")
@click.argument("checkpoint", type=InputPath(), required=False)
@network_options()
@click.option(
    "--classes",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of classes.",
)
@click.option("--size", type=IMAGE_SIDE, help="Image side in pixels. [default: the checkpoint's, or 32]")
@flags(LutOptions)
@click.option("--seconds", type=click.FloatRange(min=0), default=300.0, show_default=True,
              help="Maximum duration, for at least 12 networks; stops once the fit is stable.")  # fmt: skip
@click.option("-o", "--output", type=OutputPath(), required=True,
              help="Table to write; an existing table is extended.")  # fmt: skip
def lut(
    checkpoint: Path | None, arch: str | None, arguments: tuple[str, ...], stem: str | None, classes: int,
    size: int | None, options: LutOptions, seconds: float, output: Path,
) -> Output:  # fmt: skip
    """Measure the latency of the network's layers at many widths on this device, for `prune --latency-ms`.

    The network is that of CHECKPOINT or of --arch. Networks of random widths are timed and profiled; the
    latency of each convolution is fitted to the measurements. If the output exists, the command adds
    measurements to it.
    """
    from slimdeploy.toolchain.latency.backend import open_backend
    from slimdeploy.toolchain.latency.measure import measure_table
    from slimdeploy.toolchain.progress import log

    check_network_options(checkpoint)
    graph, size = network_or_checkpoint(
        checkpoint, arch, arguments=arguments, stem=stem, classes=classes, size=size
    )
    with open_backend(options) as opened:
        result = measure_table(graph, size, opened, output, seconds=seconds, progress=log)
    return Output(_json(result, output), _text(result, output))


def _json(result: LutResult, output: Path) -> dict[str, Any]:
    table = result.table
    return {
        "table": str(output),
        "device": table.device,
        "networks": result.networks,
        "shapes": len(table.shapes),
        "stable": result.stable,
        "error": {"median": result.median_error, "worst": result.worst_error},
        "granularity": table.granularity,
        "cache_mb": table.cache_mb,
        "remarks": list(result.remarks),
    }


def _device(device: dict[str, Any]) -> str:
    if "cpu" not in device:
        return str(device["gpu"])
    return f"{device['cpu']}, {device['threads']} thread{'s' if device['threads'] > 1 else ''}"


def _text(result: LutResult, output: Path) -> RenderableType:
    table, device = result.table, result.table.device
    rows = [
        ("table", str(output)),
        ("device", _device(device)),
        ("backend", f"{device['backend']}, {table.precision}, batch {table.batch}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in device["versions"].items())),
        ("measured", f"{result.networks} networks, {len(table.shapes)} convolution shapes"),
        ("stable", "yes" if result.stable else "not yet: run the command again to continue"),
        ("width granularity, channels", str(table.granularity)),
        ("weights fit in the cache up to", f"{table.cache_mb:g} MB" if table.cache_mb else "no limit seen"),
    ]
    if result.median_error is not None and result.worst_error is not None:
        error = f"{percent(result.median_error)} median, {percent(result.worst_error)} worst"
        rows.append(("error on networks not used for the fit", error))
    return Group(facts_table(rows), *(Text(f"! {remark}", style="yellow") for remark in result.remarks))
