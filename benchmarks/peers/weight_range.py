"""Loss by reducing the range of INT8 weights from ±127 to ±64, and its benefit on CPUs without VNNI.

    python benchmarks/peers/weight_range.py original.onnx --data folder:data/cifar10-jpeg \\
        --output benchmarks/results/weight-range.json

Each file is computed exactly by its Q/DQ pairs (in float), by plain onnxruntime, and by onnxruntime's exact
kernels (`session.x64quantprecision`), which agree with every CPU with VNNI.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime

from slimdeploy.calibrate.classifier import model_info, read_classifier
from slimdeploy.calibrate.comparison import compare_logits
from slimdeploy.calibrate.equalisation import equalise
from slimdeploy.calibrate.inference import batches, file_logits
from slimdeploy.calibrate.measure import measured
from slimdeploy.calibrate.options import CalibrateOptions, CalibrationData, calibration_data
from slimdeploy.calibrate.passes import fold_batchnorm
from slimdeploy.calibrate.qdq import FORMS
from slimdeploy.calibrate.quantiser import Quantiser
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.measure import conditions, results
from slimdeploy.toolchain.progress import log

STEPS = (127, 64)
SESSIONS = {
    "by the letter": {"session.disable_quant_qdq": "1"},
    "plain onnxruntime": {},
    "exact kernels": {"session.x64quantprecision": "1"},
}
COLUMNS = {
    "weights": "largest INT8 weight",
    "session": "how it was computed",
    "accuracy": "test accuracy, 0 to 1",
    "drop_points": "loss of accuracy by INT8, in percentage points",
    "drop_low": "95 % interval of the paired difference, lower end",
    "drop_high": "its upper end",
    "logit_error": "RMS of the logits' differences ÷ RMS of the float model's logits",
}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="As for slimdeploy calibrate.")
@click.option("--method", default="mse", show_default=True, help="Method of choosing ranges.")
@click.option("--images", default=1000, show_default=True, help="Training images to measure ranges on.")
@click.option("--test-images", type=int, help="Test images. [default: all]")
@click.option("--threads", type=int, help="CPU threads. [default: all cores]")
@click.option("--output", type=click.Path(path_type=Path), help="File of the result.")
def main(
    model: Path,
    data: str,
    method: str,
    images: int,
    test_images: int | None,
    threads: int | None,
    output: Path | None,
) -> None:
    """Quantise MODEL for the CPU with both ranges and compare."""
    source = fold_batchnorm(read_classifier(model))
    dataset = dataset_for(model_info(source, model), DataOptions(data), model)
    parts = calibration_data(dataset, images=images, test_images=test_images)
    ranges = measured(source, model, parts, threads=threads)
    equalised = equalise(source, ranges.widths)
    baseline = file_logits(model, parts.test.images, parts.preprocessing, threads=threads)
    rows = []
    for steps in STEPS:
        FORMS["cpu"] = replace(FORMS["cpu"], weight_steps=steps)
        quantiser = Quantiser(equalised, ranges.histograms, CalibrateOptions(method=method, target="cpu"))
        made = quantiser.model(method, frozenset())
        for name, entries in SESSIONS.items():
            found = compare_logits(baseline, _logits(made, parts, entries, threads), parts.test.labels)
            rows.append({
                "weights": steps, "session": name, "accuracy": found.accuracy, "drop_points": found.drop,
                "drop_low": found.drop_ci95[0], "drop_high": found.drop_ci95[1],
                "logit_error": found.relative_error,
            })  # fmt: skip
            log(f"±{steps}, {name}: {found.accuracy:.2%} ({found.baseline_accuracy:.2%} in float32)")
    if output:
        command = shlex.join(["python", *sys.argv])
        title = f"{model.stem} in INT8 on {this_cpu()}, {len(parts.test.labels):,} test images"
        document = results.document(
            "table", command=command, machine=conditions.machine(), title=title, columns=COLUMNS, rows=rows,
            remarks=[f"float32: {found.baseline_accuracy:.2%}"],
        )  # fmt: skip
        results.write(output, document)


def _logits(
    model: onnx.ModelProto, parts: CalibrationData, entries: dict[str, str], threads: int | None
) -> np.ndarray:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads or 0
    for name, value in entries.items():
        settings.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: batch})[0] for batch in batches(parts.test.images, parts.preprocessing)]
    )


if __name__ == "__main__":
    run_program(main, "weight_range")
