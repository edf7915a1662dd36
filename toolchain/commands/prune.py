"""`slimdeploy prune`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags
from slimdeploy.toolchain.commands.options import (
    checkpoint_argument,
    data_options,
    machine_options,
    output_option,
)
from slimdeploy.toolchain.formatting import count, facts_table, percent, short
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.runtime.torch_device import torch_device

if TYPE_CHECKING:
    from rich.console import RenderableType

    from slimdeploy.toolchain.data.dataset import DataOptions
    from slimdeploy.toolchain.library.prune_result import PruneResult
    from slimdeploy.toolchain.stages.written import Written


@command("prune")
@checkpoint_argument
@flags(PruneOptions)
@data_options(required=False)
@output_option
@machine_options
def prune(
    checkpoint: Path,
    options: PruneOptions,
    data: DataOptions | None,
    output: Path,
    force: bool,
    device: str,
    threads: int | None,
) -> Output:
    """Remove the least important channels of CHECKPOINT until one target is met.

    With --data, the next layers are refitted to the kept channels, BN statistics are recalibrated (both on
    training images), and the test accuracy is reported after each step. Without --data, channels are only
    removed.
    """
    from slimdeploy.toolchain.stages.prune import prune_stage

    result = prune_stage(
        checkpoint,
        options=options,
        output=output,
        data=data,
        device=torch_device(device, threads),
        force=force,
    )
    return Output(result.to_json(), _text(result))


def _text(written: Written[PruneResult]) -> RenderableType:
    result = written.result
    before, after = result.before, result.after
    parameters = f"{count(before.params)} → {count(after.params)} ({before.params / after.params:.1f}× fewer)"
    rows = [
        ("checkpoint", str(written.checkpoint)),
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
        ms = f"~{latency.predicted_ms:.3g} ms predicted"
        truth = f"not measured ({latency.not_measured})"
        if latency.measured_ms is not None:
            truth = f"~{latency.measured_ms:.3g} ms measured"
        rows.append(("latency", f"{ms}, {truth}"))
    for name, accuracy in (result.accuracy or {}).items():
        rows.append((f"test accuracy {name.replace('_', ' ')}", percent(accuracy)))
    return facts_table([*rows, ("time to prune", f"{result.seconds:.2f} s")])


def _folding_line(result: PruneResult) -> str:
    folding = result.folding
    parts = []
    if folding.channels:
        exact, rough = len(folding.exact), len(folding.approximate)
        parts.append(
            f"{folding.channels} channels: exactly into {exact} layers, not exact at borders into {rough}"
        )
    if folding.lost:
        parts.append(f"impossible for {len(folding.lost)} layers or sums")
    return "; ".join(parts) or "none"
