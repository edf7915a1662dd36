"""`slimdeploy calibrate`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags
from slimdeploy.toolchain.commands.options import data_options, output_option
from slimdeploy.toolchain.paths import InputPath, OutputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions
    from slimdeploy.toolchain.library.quantize import Calibration


SHOWN, NAMED = 12, 6
"""Layers in a table, and in a line: --json has all of them."""


@command("calibrate")
@click.argument("model", type=InputPath(".json"))
@flags(CalibrateOptions)
@click.option(
    "--images", type=click.IntRange(min=1), default=1000, show_default=True,
    help="Training images to measure activations on.",
)  # fmt: skip
@click.option(
    "--selection-images", type=click.IntRange(min=1), default=2000, show_default=True,
    help="Other training images to choose method and layers with.",
)  # fmt: skip
@click.option(
    "--parity-images",
    type=click.IntRange(min=1),
    help="Test images for the reported accuracy. [default: all]",
)
@click.option(
    "--ranges", type=OutputPath(), help="File of activation ranges: reused if it exists, else written."
)
@click.option(
    "--trt8-cache", "trt8", type=OutputPath(), help="Write a calibration cache for TensorRT 8 as well."
)
@data_options(required=False)
@output_option
def calibrate(
    model: Path,
    data: DataOptions | None,
    output: Path,
    ranges: Path | None,
    trt8: Path | None,
    images: int,
    selection_images: int,
    parity_images: int | None,
    force: bool,
    options: CalibrateOptions,
) -> Output:
    """Write MODEL, a float32 ONNX file from `slimdeploy export`, in INT8, and compare both on real images.

    --data defaults to the data that the network was trained on. If INT8 loses more accuracy than allowed even
    with the most sensitive layers in float, no file is written and the exit code is 1.
    """
    from slimdeploy.calibrate.classifier import model_info, read_classifier
    from slimdeploy.calibrate.options import calibration_data
    from slimdeploy.toolchain.artifacts import check_output
    from slimdeploy.toolchain.data.of_model import data_of, dataset_for, trained_on
    from slimdeploy.toolchain.file_kinds import ONNX
    from slimdeploy.toolchain.library.quantize import quantize
    from slimdeploy.toolchain.progress import progress_bar

    check_output(output, force=force, kind=ONNX)
    info = model_info(read_classifier(model), model)
    data = data or data_of(info, model)
    result = quantize(
        model,
        data=calibration_data(
            dataset_for(info, data, model),
            images=images,
            selection_images=selection_images,
            test_images=parity_images,
            of_training=trained_on(info, data),
        ),
        options=options,
        output=output,
        ranges=ranges,
        trt8=trt8,
        force=force,
        progress=lambda title, total: progress_bar(title, total=total),
    )
    return Output(result.to_json(), _text(result), result.failure(model))


def _text(result: Calibration) -> Any:
    from rich.console import Group
    from rich.text import Text

    from slimdeploy.toolchain.formatting import facts_table, grid, percent

    parity = result.parity
    low, high = parity.drop_ci95
    rows = [
        ("ONNX", str(result.onnx or "not written")),
        ("precision", f"{result.precision}, for {result.options.target}"),
        ("method", result.method),
        ("accuracy float32 / INT8", f"{percent(parity.baseline_accuracy)} / {percent(parity.accuracy)}"),
        *_speed_rows(result),
        ("drop (95 % interval)", f"{parity.drop:+.2f} points ({low:+.2f} to {high:+.2f})"),
        ("same top-1 class", f"{percent(parity.top1_agreement)} of {parity.images} images"),
        ("layers in float", _named(result.float_layers)),
    ]
    if result.options.compute == "fp16":
        rows.append(("layers in FP32 (beyond FP16)", _named(result.overflowing)))
    parts: list[Any] = [facts_table(rows)]
    if len(result.methods) > 1:
        columns = ["method", "accuracy drop, points", "same top-1 class", "logit error"]
        parts.append(grid(columns, [
            (name, f"{m.drop:+.2f}", percent(m.top1_agreement), percent(m.relative_error))
            for name, m in result.methods.items()
        ], title="on the selection images"))  # fmt: skip
    if result.sensitivity:
        columns = [
            "layer",
            "logit error if INT8",
            "accuracy drop if float, points",
            "same top-1 class",
            "in",
        ]
        parts.append(grid(columns, [
            (s.layer, percent(s.gain), f"{s.drop:+.2f}", percent(s.top1_agreement),
             "float" if s.layer in result.float_layers else "INT8")
            for s in result.sensitivity[:SHOWN]
        ], title=f"one layer in float, all others in INT8{_most_of(result.sensitivity)}"))  # fmt: skip
    ranked = [s.layer for s in result.sensitivity]
    kept = sorted(result.reasons, key=lambda name: ranked.index(name) if name in ranked else -1)
    why = [f"{name} stays in float: {result.reasons[name]}" for name in kept[:NAMED]]
    if len(kept) > NAMED:
        why.append(f"… and {len(kept) - NAMED} more layers (--json has all)")
    if why:
        parts.append(Text("\n".join(why)))
    return Group(*parts)


def _named(layers: Sequence[str]) -> str:
    """The first NAMED of them, and how many more there are."""
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    return ", ".join(layers[:NAMED]) + more or "none"


def _most_of(layers: Sequence[object]) -> str:
    return f": the {SHOWN} most sensitive of {len(layers)}" if len(layers) > SHOWN else ""


def _speed_rows(result: Calibration) -> list[tuple[str, str]]:
    """Measured times of both files on this CPU."""
    if (speed := result.speed) is None:
        return []
    times = f"~{speed.float32:.3g} / ~{speed.quantised:.3g} ms"
    return [
        ("batch 1 float32 / INT8", f"{times}: slower than float32 here" if speed.slower else times),
        ("on", speed.cpu),
    ]
