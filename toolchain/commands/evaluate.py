"""`slimdeploy evaluate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.options import data_options, machine_options
from slimdeploy.toolchain.formatting import count, facts_table, percent
from slimdeploy.toolchain.paths import InputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


@command("evaluate")
@click.argument("model", type=InputPath(".json"))
@data_options(required=False)
@click.option("--limit", type=click.IntRange(min=1), help="A class-balanced subset of N test images.")
@click.option("--backend", default="auto", show_default=True, help="What runs it; auto goes by the file.")
@click.option("--accuracy-only", is_flag=True,
              help="An engine: preprocess and count on the GPU. Tells no loss.")  # fmt: skip
@machine_options
def evaluate(
    model: Path,
    data: DataOptions | None,
    limit: int | None,
    backend: str,
    accuracy_only: bool,
    device: str,
    threads: int | None,
) -> Output:
    """Accuracy and loss of MODEL (a checkpoint, an ONNX file or an engine) on the test split.

    --data defaults to the data that the model was trained on.
    """
    from slimdeploy.toolchain.measure.evaluate import evaluate_model
    from slimdeploy.toolchain.measure.subjects import subjects_for
    from slimdeploy.toolchain.runtime.session import SessionOptions

    (subject,) = subjects_for([model], [backend], SessionOptions(device=device, threads=threads))
    found, used, precision = evaluate_model(subject, data, limit=limit, accuracy_only=accuracy_only)
    low, high = found.interval
    document = {
        "model": str(model),
        "backend": used,
        "precision": precision,
        "accuracy": found.accuracy,
        "accuracy_ci95": [low, high],
        "loss": found.loss,
        "images": found.images,
    }
    rows = [
        ("model", str(model)),
        ("ran on", f"{used}, {precision}"),
        ("test accuracy", f"{percent(found.accuracy)} (95 %: {percent(low)} to {percent(high)})"),
        *([("test loss", f"{found.loss:.4f}")] if found.loss is not None else []),
        ("images", count(found.images)),
    ]
    return Output(document, facts_table(rows))
