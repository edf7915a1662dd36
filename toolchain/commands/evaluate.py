"""`slimdeploy evaluate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.formatting import count, facts_table, percent
from slimdeploy.toolchain.options import data_options, machine_options

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


@command("evaluate")
@click.argument("model", type=click.Path(path_type=Path))
@data_options(required=False)
@click.option(
    "--backend", default="auto", show_default=True, help="torch or onnxruntime; auto goes by the file."
)
@machine_options
def evaluate(model: Path, data: DataOptions | None, backend: str, device: str, threads: int | None) -> Output:
    """Accuracy and loss of MODEL, a checkpoint or an ONNX file, on the test split.

    --data defaults to the data that the model was trained on.
    """
    from slimdeploy.benchmarks import accuracy
    from slimdeploy.toolchain.errors import SlimdeployError
    from slimdeploy.toolchain.runtime.preprocess import normalise
    from slimdeploy.toolchain.runtime.session import SessionOptions, open_session
    from slimdeploy.toolchain.training.stage import data_of, dataset_for

    with open_session(model, backend, SessionOptions(device=device, threads=threads)) as session:
        if session.info is None:
            raise SlimdeployError(f"{model} doesn't say how to feed it: export it with slimdeploy")
        info = session.info
        dataset = dataset_for(info, data or data_of(info, model), model)
        found = accuracy.evaluate(
            lambda images: session.run(normalise(images, info.preprocessing)),
            dataset.test.images,
            dataset.test.labels,
            batch=64,
        )
        used = session.backend
    low, high = found.interval
    document = {
        "model": str(model),
        "backend": used,
        "accuracy": found.accuracy,
        "accuracy_ci95": [low, high],
        "loss": found.loss,
        "images": len(found.correct),
    }
    rows = [
        ("model", str(model)),
        ("backend", used),
        ("test accuracy", f"{percent(found.accuracy)} (95 %: {percent(low)} to {percent(high)})"),
        ("test loss", f"{found.loss:.4f}"),
        ("images", count(len(found.correct))),
    ]
    return Output(document, facts_table(rows))
