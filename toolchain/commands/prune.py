"""`slimdeploy prune`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.formatting import count, facts_table, percent, short
from slimdeploy.toolchain.options import (
    checkpoint_argument,
    data_options,
    machine_options,
    output_option,
    torch_device,
)

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions
    from slimdeploy.toolchain.pruning.stage import PruneResult


@command("prune")
@checkpoint_argument
@click.option(
    "--ratio", type=float, required=True, help="Share of the prunable channels to remove, from 0 to below 1."
)
@click.option(
    "--min-channels", type=int, default=3, show_default=True, help="Keep at least so many in a layer."
)
@click.option("--fold/--no-fold", default=True, show_default=True,
              help="Fold the constants that removed channels passed on into what follows.")  # fmt: skip
@click.option("--recalibration-images", type=click.IntRange(min=2), default=5120, show_default=True,
              help="Training images for the new BN statistics.")  # fmt: skip
@data_options(required=False)
@output_option
@machine_options
def prune(
    checkpoint: Path,
    ratio: float,
    min_channels: int,
    fold: bool,
    recalibration_images: int,
    data: DataOptions | None,
    output: Path,
    force: bool,
    device: str,
    threads: int | None,
) -> Output:
    """Remove the channels of CHECKPOINT whose |γ| is smallest over all prunable layers.

    With --data, BN statistics are measured anew on training images, and the test accuracy is reported
    before, after the cut and after recalibration. Without, it only cuts.
    """
    from slimdeploy.toolchain.pruning.stage import PruneOptions, prune_stage

    options = PruneOptions(
        ratio=ratio, min_channels=min_channels, fold=fold, recalibration_images=recalibration_images
    )
    result = prune_stage(
        checkpoint,
        options=options,
        output=output,
        data=data,
        device=torch_device(device, threads),
        force=force,
    )
    return Output(result.to_json(), _text(result))


def _text(result: PruneResult) -> object:
    before, after = result.before, result.after
    rows = [
        ("checkpoint", str(result.checkpoint)),
        (
            "parameters",
            f"{count(before.params)} → {count(after.params)} ({before.params / after.params:.1f}× fewer)",
        ),
        ("MACs", f"{short(before.macs)} → {short(after.macs)} ({before.macs / after.macs:.1f}× fewer)"),
        (
            f"MACs, widths padded to {after.alignment}",
            f"{short(before.padded_macs)} → {short(after.padded_macs)}",
        ),
        ("constants folded", _folding_line(result)),
    ]
    for name, accuracy in (result.accuracy or {}).items():
        rows.append((f"test accuracy {name.replace('_', ' ')}", percent(accuracy)))
    return facts_table([*rows, ("time to prune", f"{result.seconds:.2f} s")])


def _folding_line(result: PruneResult) -> str:
    folding = result.folding
    if not folding.channels:
        return "none"
    exact, rough = len(folding.exact), len(folding.approximate)
    return f"{folding.channels} channels: exactly into {exact} layers, but for the border into {rough}"
