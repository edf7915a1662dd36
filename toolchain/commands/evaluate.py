"""`slimdeploy evaluate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.formatting import facts_table, percent
from slimdeploy.toolchain.options import data_options, machine_options

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


@command("evaluate")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=True)
@click.option("--limit", type=click.IntRange(min=1), help="A class-balanced subset of N test images.")
@click.option("--backend", default="auto", show_default=True, help="What runs the model.")
@machine_options
def evaluate(
    model: Path, data: DataOptions, limit: int | None, backend: str, device: str, threads: int | None
) -> Output:
    """Accuracy and mean cross-entropy of MODEL (checkpoint, ONNX file or engine) on the test images of
    --data.
    """
    from slimdeploy.benchmarks.evaluate import evaluate_model
    from slimdeploy.benchmarks.images import images_loader
    from slimdeploy.benchmarks.subjects import subjects_for
    from slimdeploy.toolchain.runtime.session import SessionOptions

    (subject,) = subjects_for([model], [backend], SessionOptions(device=device, threads=threads))
    found, ran_on, precision = evaluate_model(subject, images_loader(data, limit))
    low, high = found.interval
    result = {
        "model": str(model),
        "backend": ran_on,
        "precision": precision,
        "accuracy": found.accuracy,
        "accuracy_ci95": [low, high],
        "loss": found.loss,
        "images": len(found.correct),
    }
    rows = [
        ("model", str(model)),
        ("ran on", f"{ran_on}, {precision}"),
        ("accuracy", f"{percent(found.accuracy)} (95 %: {percent(low)} to {percent(high)})"),
        ("loss", f"{found.loss:.4f}"),
        ("test images", f"{len(found.correct):,}"),
    ]
    return Output(result, facts_table(rows))
