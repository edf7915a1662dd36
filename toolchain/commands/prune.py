"""`slimdeploy prune`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.options import (
    checkpoint_argument,
    data_options,
    machine_options,
    output_option,
    seed_option,
)
from slimdeploy.toolchain.formatting import count, facts_table, percent, short
from slimdeploy.toolchain.paths import InputPath
from slimdeploy.toolchain.pruning.criterion import CRITERIA
from slimdeploy.toolchain.runtime.torch_device import torch_device

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slimdeploy.toolchain.data.dataset import DataOptions
    from slimdeploy.toolchain.stages.prune import PruneResult


class Amount(click.ParamType):
    """A number such as `3.94M`, `40M`, `1.3G` or `837000`."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        from slimdeploy.toolchain.pruning.options import parse_amount

        try:
            return parse_amount(value)
        except ValueError:
            return self.fail(f"{value!r} is not a number such as 3.94M", param, ctx)


class Alignment(click.ParamType):
    """`auto` or a whole number."""

    name = "alignment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        from slimdeploy.toolchain.pruning.options import parse_alignment

        try:
            return parse_alignment(str(value))
        except ValueError:
            return self.fail(
                f"{value!r} is neither auto nor a whole number such as 1, 8, 16 or 32", param, ctx
            )


@command("prune")
@checkpoint_argument
@click.option("--ratio", type=float, help="Target: the share of the prunable channels to remove.")
@click.option("--params", type=Amount(), help="Target: at most so many parameters, such as 3.94M.")
@click.option(
    "--macs", type=Amount(), help="Target: at most so many multiply-accumulates an image, such as 40M."
)
@click.option("--latency-ms", type=float, help="Target: at most so many milliseconds, by --latency-table.")
@click.option(
    "--latency-table",
    type=InputPath(text=True),
    help="What `slimdeploy lut` measured on the machine in question.",
)
@click.option("--measure/--no-measure", default=True, show_default=True,
              help="Time the pruned network here and adjust the budget.")  # fmt: skip
@click.option("--criterion", default="gamma", show_default=True,
              help=f"{', '.join(CRITERIA)}; taylor and surgeon need --data.")  # fmt: skip
@click.option("--residual", type=click.Choice(["keep", "couple"]), default="keep", show_default=True,
              help="couple prunes the layers' outputs too, all blocks of a layer together.")  # fmt: skip
@click.option("--align", type=Alignment(), default="auto", show_default=True,
              help="Kept widths are multiples of this; auto goes by --target.")  # fmt: skip
@click.option("--target", type=click.Choice(["cpu", "tensorrt", "tensorrt-int8"]), default="cpu",
              show_default=True, help="Where the network will run: alignment 8, 8 or 32.")  # fmt: skip
@click.option(
    "--min-channels", type=int, default=3, show_default=True, help="Keep at least so many in a layer."
)
@click.option(
    "--allow-block-removal", is_flag=True, help="Let blocks with nothing left become their shortcut."
)
@click.option("--fold/--no-fold", default=True, show_default=True,
              help="Fold the constants that removed channels passed on into what follows.")  # fmt: skip
@click.option("--compensate/--no-compensate", default=True, show_default=True,
              help="With --data: refit the next layer by least squares.")  # fmt: skip
@click.option("--statistics-images", type=click.IntRange(min=16), default=2048, show_default=True,
              help="Training images to measure activations on.")  # fmt: skip
@click.option("--recalibration-images", type=click.IntRange(min=2), default=5120, show_default=True,
              help="Training images for the new BN statistics.")  # fmt: skip
@click.option(
    "--steps", type=int, default=1, show_default=True, help="Prune in so many steps, fine-tuning between."
)
@click.option("--step-epochs", type=int, default=1, show_default=True, help="Epochs between two steps.")
@click.option(
    "--step-lr", type=float, default=0.01, show_default=True, help="Peak learning rate between steps."
)
@data_options(required=False)
@output_option
@seed_option
@machine_options
def prune(
    checkpoint: Path,
    data: DataOptions | None,
    output: Path,
    force: bool,
    device: str,
    threads: int | None,
    **given: Any,
) -> Output:
    """Remove the channels of CHECKPOINT that matter least, down to one target.

    With --data, the layers behind are refitted to the kept channels, BN statistics are measured anew
    (both on training images), and the test accuracy is reported at each step. Without, it only cuts.
    """
    from slimdeploy.toolchain.pruning.options import PruneOptions
    from slimdeploy.toolchain.stages.prune import prune_stage

    result = prune_stage(
        checkpoint,
        options=PruneOptions(**given),
        output=output,
        data=data,
        device=torch_device(device, threads),
        force=force,
    )
    return Output(result.to_json(), _text(result))


def _text(result: PruneResult) -> RenderableType:
    before, after = result.before, result.after
    parameters = f"{count(before.params)} → {count(after.params)} ({before.params / after.params:.1f}× fewer)"
    rows = [
        ("checkpoint", str(result.checkpoint)),
        ("parameters", parameters),
        ("MACs", f"{short(before.macs)} → {short(after.macs)} ({before.macs / after.macs:.1f}× fewer)"),
        (
            f"MACs, widths padded to {after.alignment}",
            f"{short(before.padded_macs)} → {short(after.padded_macs)}",
        ),
        ("blocks removed", ", ".join(result.removed_blocks) or "none"),
        ("constants folded", _folding_line(result)),
    ]
    if latency := result.latency:
        ms = f"{latency.predicted_ms:.3f} ms predicted"
        truth = f"not measured ({latency.not_measured})"
        if latency.measured_ms is not None:
            truth = f"{latency.measured_ms:.3f} ms measured"
        rows.append(("latency", f"{ms}, {truth}"))
    for name, accuracy in (result.accuracy or {}).items():
        rows.append((f"test accuracy {name.replace('_', ' ')}", percent(accuracy)))
    return facts_table([*rows, ("time to prune", f"{result.seconds:.2f} s")])


def _folding_line(result: PruneResult) -> str:
    folding = result.folding
    if not folding.channels:
        return "none"
    exact, rough = len(folding.exact), len(folding.approximate)
    return f"{folding.channels} channels: exactly into {exact} layers, not exact at borders into {rough}"
