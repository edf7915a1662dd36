"""slimdeploy's INT8 against onnxruntime's quantize_static and nvidia-modelopt: the same model, the same
images.

    python -m venv .modelopt && .modelopt/bin/pip install 'nvidia-modelopt[onnx]'
    python benchmarks/peers/quantizers.py model.onnx --data folder:data/cifar10-jpeg --work runs/quantizers \\
        --modelopt .modelopt/bin/python --output benchmarks/results/quantizers.json

Each tool quantises the float32 export in its own process, without later choices. Then all files are compared:
accuracy on the test images, onnxruntime latency in one interleaved run, and whether TensorRT's parser and
builder accept them. The files for this model are kept in the work folder: a repetition only measures the
latency. modelopt needs other versions of onnx and onnxruntime, hence a separate environment; without
`--modelopt` it is skipped.
"""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from quantizer_tools import TOOLS

from slimdeploy.calibrate.classifier import model_info, read_classifier
from slimdeploy.calibrate.comparison import compare_logits
from slimdeploy.calibrate.inference import Network
from slimdeploy.calibrate.options import CalibrationData, calibration_data
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export import trt_cpu
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.measure.bench import find_surroundings, measure
from slimdeploy.toolchain.measure.options import MeasureOptions
from slimdeploy.toolchain.measure.subjects import subjects_for
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import SessionOptions

COLUMNS = {
    "tool": "tool and settings",
    "accuracy": "test accuracy of the INT8 model",
    "drop_points": "loss of accuracy by INT8, in percentage points",
    "drop_low": "95 % interval of the paired difference, lower end",
    "drop_high": "its upper end",
    "top1_agreement": "share of test images with the float model's top class",
    "batch_1_ms": "median latency at batch 1, onnxruntime, ms",
    "batch_64_ms": "median latency at batch 64, onnxruntime, ms; null if --batch excludes it",
    "seconds": "time to calibrate and to write the file",
    "cpu_seconds": "processor time of the same, all threads together",
    "peak_mib": "peak memory of that process, MiB",
    "tensorrt": "whether TensorRT's parser and builder accept the file",
}


def quantise(name: str, python: str, model: Path, images: Path, output: Path) -> dict[str, Any]:
    """Run one tool in its own process, on a copy of the model, because modelopt changes its input."""
    script = Path(__file__).with_name("quantizer_tools.py")
    copy = output.with_suffix(".source.onnx")
    shutil.copyfile(model, copy)
    command = [python, str(script), name, str(copy), str(images), str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SlimdeployError(f"{name} failed: {shlex.join(command)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def once(record: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of `record`, created if it doesn't exist, so that a repetition only measures the
    latency.
    """
    if not record.exists():
        artifacts.write_json(record, make())
    return json.loads(record.read_text())


def accuracy(model: Path, baseline: np.ndarray, data: CalibrationData) -> dict[str, Any]:
    """Accuracy of the file in onnxruntime on this machine, compared with the float model."""
    network = Network(onnx.load(model))
    found = compare_logits(baseline, network.logits(data.test.images, data.preprocessing), data.test.labels)
    return {
        "accuracy": found.accuracy,
        "drop_points": found.drop,
        "drop_low": found.drop_ci95[0],
        "drop_high": found.drop_ci95[1],
        "top1_agreement": found.top1_agreement,
    }


def judged(model: Path, baseline: np.ndarray, data: CalibrationData, trt: types.ModuleType) -> dict[str, Any]:
    """The results that don't depend on the load of the machine."""
    return {**accuracy(model, baseline, data), "tensorrt": tensorrt_takes(trt, model)}


def tensorrt_takes(trt: types.ModuleType, model: Path) -> str:
    """`yes`, or the first reason why not."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        return f"no: {' '.join(parser.get_error(0).desc().split())[:120]}"
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    image = network.get_input(0)
    shape = list(image.shape)[1:]
    profile.set_shape(image.name, [1, *shape], [8, *shape], [64, *shape])
    config.add_optimization_profile(profile)
    return "yes" if builder.build_serialized_network(network, config) is not None else "no: parsed, not built"


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--data", required=True)
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"))
@click.option("--images", type=int, default=1000, show_default=True, help="Images for calibration.")
@click.option("--parity-images", type=int, help="Test images [default: all].")
@click.option("--modelopt", help="Python of an environment with nvidia-modelopt.")
@click.option("--threads", type=int, help="CPU threads of the timed runs [default: all cores].")
@click.option("--only", multiple=True, help="Tools, by a part of their name.")
@click.option("--batch", multiple=True, type=click.IntRange(min=1), default=(1, 64), show_default=True,
              help="Batch size of a timed run.")  # fmt: skip
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Timed seconds for each model.")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(
    model: Path, data: str, data_dir: Path, images: int, parity_images: int | None, modelopt: str | None,
    threads: int | None, only: tuple[str, ...], batch: tuple[int, ...], seconds: float, work: Path,
    output: Path,
) -> None:  # fmt: skip
    """Quantise MODEL with every tool and write a `table` result."""
    work = work / f"{model.stem}-{artifacts.sha256_file(model)[:12]}-{images}-{parity_images or 'all'}"
    work.mkdir(parents=True, exist_ok=True)
    source = read_classifier(model)
    dataset = dataset_for(model_info(source, model), DataOptions(data, data_dir), model)
    parts = calibration_data(dataset, images=images, test_images=parity_images)
    np.save(work / "images.npy", normalise(parts.ranges.images, parts.preprocessing))
    if not (work / "baseline.npy").exists():
        np.save(work / "baseline.npy", Network(source.model).logits(parts.test.images, parts.preprocessing))
    baseline = np.load(work / "baseline.npy")
    trt = trt_cpu.load()
    made = {}
    for name in TOOLS:
        theirs = name.startswith("nvidia-modelopt")
        if only and not any(part in name for part in only):
            continue
        if theirs and not modelopt:
            log(f"{name}: skipped: --modelopt names no Python with nvidia-modelopt")
            continue
        log(f"{name} …")
        path = work / ("".join(c if c.isalnum() else "-" for c in name) + ".onnx")
        python = modelopt if theirs and modelopt else sys.executable
        task = functools.partial(quantise, name, python, model, work / "images.npy", path)
        made[path] = {"tool": name, **once(path.with_suffix(".made.json"), task)}
        judge = functools.partial(judged, path, baseline, parts, trt)
        made[path] |= once(path.with_suffix(".judged.json"), judge)
    subjects = subjects_for([model, *made], ["onnxruntime"], SessionOptions(device="cpu", threads=threads))
    timing = MeasureOptions(batches=batch, seconds=seconds, threads=threads)
    bench = measure(subjects, timing, find_surroundings(None, log))
    correct = float((baseline.argmax(axis=1) == parts.test.labels).mean())
    rows = {str(model): {"tool": "float32", "accuracy": correct, "drop_points": 0.0}}
    rows |= {str(path): found for path, found in made.items()}
    for one in bench["rows"]:
        rows[one["model"]][f"batch_{one['batch']}_ms"] = one["latency_ms"]["p50"]
    table = results.document(
        "table",
        command=shlex.join(["python", "benchmarks/peers/quantizers.py", *sys.argv[1:]]),
        machine=bench["machine"],
        title=f"{model.name} in INT8, calibrated on {images} images, {len(parts.test)} test images",
        columns=COLUMNS,
        rows=[dict.fromkeys(COLUMNS) | row for row in rows.values()],
        remarks=bench["remarks"],
    )
    results.write(output, table)
    log(f"written: {output}")


if __name__ == "__main__":
    run_program(main, "quantizers")
