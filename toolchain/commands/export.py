"""`slimdeploy export`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.formatting import facts_table, percent
from slimdeploy.toolchain.options import checkpoint_argument, data_options, output_option

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


@command("export")
@checkpoint_argument
@click.option(
    "--opset", type=int, default=19, show_default=True, help="ONNX opset; 17 is what TensorRT 8 reads."
)
@click.option(
    "--max-abs-error", type=float, default=1e-3, show_default=True, help="Allowed difference of a logit."
)
@click.option("--parity-images", type=click.IntRange(min=1), default=512, show_default=True,
              help="Test images to compare on.")  # fmt: skip
@data_options(required=False)
@output_option
def export(
    checkpoint: Path,
    opset: int,
    max_abs_error: float,
    parity_images: int,
    data: DataOptions | None,
    output: Path,
    force: bool,
) -> Output:
    """Write CHECKPOINT as ONNX with BN folded in, and compare it with torch on real images.

    --data defaults to the data that the checkpoint was trained on. Where the two differ by more than
    allowed, no file is left and the exit code is 1.
    """
    from slimdeploy.toolchain.export.stage import ExportOptions, export_stage

    options = ExportOptions(opset=opset, max_abs_error=max_abs_error, parity_images=parity_images)
    result = export_stage(checkpoint, options=options, output=output, data=data, force=force)
    rows = [
        ("ONNX", str(result.onnx)),
        ("precision", result.precision),
        ("largest difference of a logit", f"{result.parity.max_abs_error:.1e}"),
        ("same top class", f"{percent(result.parity.top1_agreement)} of {result.parity.images} images"),
    ]
    return Output(result.to_json(), facts_table(rows))
