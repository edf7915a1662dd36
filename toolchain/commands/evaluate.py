"""`slimdeploy evaluate`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags
from slimdeploy.toolchain.commands.options import data_options
from slimdeploy.toolchain.formatting import count, facts_table, grid, percent
from slimdeploy.toolchain.measure.options import EvaluateOptions
from slimdeploy.toolchain.paths import InputPath

if TYPE_CHECKING:
    from rich.table import Table

    from slimdeploy.toolchain.data.dataset import DataOptions
    from slimdeploy.toolchain.measure.accuracy import Evaluation


@command("evaluate")
@click.argument("model", type=InputPath(".json"))
@data_options(required=False)
@flags(EvaluateOptions)
def evaluate(model: Path, data: DataOptions | None, options: EvaluateOptions) -> Output:
    """Evaluate MODEL (a checkpoint, an ONNX file or an engine) on the test split: accuracy, loss, precision
    and recall of each class, and the expected calibration error.

    --data defaults to the data that the model was trained on. --json also prints the confusion matrix (one
    row per true class) and the bins of the calibration error. `slimdeploy report` draws both.
    """
    from rich.console import Group

    from slimdeploy.toolchain.library.evaluate import evaluate as evaluated
    from slimdeploy.toolchain.measure.accuracy import TOP
    from slimdeploy.toolchain.measure.gpu_accuracy import Count
    from slimdeploy.toolchain.measure.reliability import BINS

    found = evaluated(model, data=data, options=options)
    evaluation, document = found.evaluation, found.to_json()
    low, high = evaluation.interval
    rows = [
        ("model", found.model),
        ("ran on", f"{found.backend}, {found.precision}"),
        ("images", count(evaluation.images)),
        ("test accuracy", f"{percent(evaluation.accuracy)} (95 %: {percent(low)} to {percent(high)})"),
    ]
    if isinstance(evaluation, Count):
        return Output(document, facts_table(rows))
    if evaluation.classes > TOP:
        rows.append((f"top-{TOP} accuracy", percent(evaluation.top5_accuracy)))
    rows.append(("test loss", f"{evaluation.loss:.4f}"))
    rows.append((f"calibration error, {BINS} bins", percent(evaluation.reliability.error)))
    return Output(document, Group(facts_table(rows), _by_class(evaluation, found.class_names)))


def _by_class(evaluation: Evaluation, names: Sequence[str], most: int = 20) -> Table:
    """Precision and recall of each class, or of the `most` classes with the lowest recall."""
    columns = (names, evaluation.confusion.sum(1), evaluation.precision, evaluation.recall)
    rows = [row for row in zip(*columns, strict=True) if row[1] or row[2] is not None]
    title = None
    if len(rows) > most:
        rows = sorted(rows, key=lambda row: -1 if row[3] is None else row[3])[:most]
        title = f"the {most} classes with the lowest recall"

    def share(value: float | None) -> str:
        return "–" if value is None else percent(value)

    return grid(
        ("class", "images", "precision", "recall"),
        [(name, count(images), share(precision), share(recall)) for name, images, precision, recall in rows],
        title=title,
    )
