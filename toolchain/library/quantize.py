"""`slimdeploy.quantize`: quantise a float32 ONNX file to INT8 and compare both."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from slimdeploy.calibrate.classifier import Classifier, model_info, read_classifier
from slimdeploy.calibrate.collect import collect
from slimdeploy.calibrate.comparison import Comparison, compare_logits
from slimdeploy.calibrate.equalisation import equalise
from slimdeploy.calibrate.inference import batches, file_logits
from slimdeploy.calibrate.measure import Progress, measured, no_progress
from slimdeploy.calibrate.options import CalibrateOptions, CalibrationData, calibration_data
from slimdeploy.calibrate.passes import fold_batchnorm
from slimdeploy.calibrate.qdq import quantised_layers
from slimdeploy.calibrate.quantiser import Quantiser, Trial, best_method
from slimdeploy.calibrate.sensitivity import Sensitivity, layers_to_keep, sensitivities
from slimdeploy.calibrate.speed import Speed, compare_speed
from slimdeploy.calibrate.thresholds import METHODS
from slimdeploy.calibrate.trt8_cache import trt8_cache
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.file_kinds import ONNX
from slimdeploy.toolchain.library.keywords import takes
from slimdeploy.toolchain.models.model_info import versions
from slimdeploy.toolchain.models.stated_accuracy import check_stated_accuracy
from slimdeploy.toolchain.paths import InputPath, OutputPath, check_apart

_NOT_OF_THE_FILE = ("onnx", "engine", "latency_ms")
"""Keys of the result that the sidecar omits: the path, and the speed on this machine."""


@dataclass(frozen=True)
class Calibration:
    """The result. `onnx` is None if the accuracy fell by more than allowed; no file was written then."""

    onnx: Path | None
    precision: str
    method: str
    parity: Comparison
    """Comparison of the written file with float32 on the test images."""
    methods: dict[str, Comparison]
    """Every method that was tried, with its result on the selection images."""
    float_layers: tuple[str, ...]
    """Layers kept in float."""
    reasons: dict[str, str]
    """Layer kept in float -> reason."""
    overflowing: tuple[str, ...]
    """Nodes kept in FP32 because their values overflow in FP16."""
    sensitivity: tuple[Sensitivity, ...]
    speed: Speed | None
    """Speed of the written file; None if the target is not this CPU."""
    options: CalibrateOptions = field(repr=False)

    def failure(self, model: Path) -> str | None:
        """The error if `model` lost more accuracy than allowed; else None."""
        if self.onnx is not None:
            return None
        return (
            f"{model}: INT8 loses {self.parity.drop:.2f} points on {self.parity.images} test images "
            f"({self.options.max_drop:g} allowed); no file written. Try more `selection_images`"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "onnx": str(self.onnx) if self.onnx else None,
            "precision": self.precision,
            "target": self.options.target,
            "compute": self.options.compute,
            "method": self.method,
            "parity": self.parity.to_json(),
            "max_drop": self.options.max_drop,
            "methods": {name: result.to_json() for name, result in self.methods.items()},
            "float_layers": list(self.float_layers),
            "float_reasons": self.reasons,
            "fp16_overflow": list(self.overflowing),
            "sensitivity": [entry.to_json() for entry in self.sensitivity],
            "latency_ms": self.speed.to_json() if self.speed else None,
            "engine": None,
        }


@takes(CalibrateOptions)
def quantize(
    model: str | Path,
    *,
    data: Dataset | CalibrationData,
    output: str | Path,
    ranges: str | Path | None = None,
    trt8: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    options: CalibrateOptions,
) -> Calibration:
    """Quantise the float32 ONNX file `model` to INT8 and write it to `output`, with a JSON file of its
    thresholds beside it. Both models are compared on the test images.

    Args:
        model: An ONNX file that `export` wrote in fp32.
        data: A dataset with the model's preprocessing, or the result of `calibration_data` for other numbers
            of images.
        output: The ONNX file to write.
        ranges: File of the measured ranges. It is read if it exists, else written. A stale file is refused
            or, with `force`, replaced.
        trt8: The calibration cache for TensorRT 8 to write, if any.
        force: Replace existing files.
        progress: Shows the progress: called with a title and a total, it returns a context manager.

    Returns:
        The written file and its comparison. `onnx` is None if the accuracy falls by more than `max_drop`
        points; no file is written then.

    Raises:
        SlimdeployError: A model that can't be quantised, images of another size, or existing files.
        CheckFailed: A model that is far less accurate than it states, on the data that it was trained on.
    """
    model, output = Path(model), Path(output)
    data = calibration_data(data) if isinstance(data, Dataset) else data
    ranges, trt8 = (Path(path) if path else None for path in (ranges, trt8))
    check_apart(
        [
            ("`model`", model, InputPath(".json")),
            ("`output`", output, OutputPath(".json")),
            ("`ranges`", ranges, OutputPath()),
            ("`trt8`", trt8, OutputPath()),
        ]
    )
    artifacts.check_output(output, force=force, kind=ONNX)
    if trt8:
        artifacts.check_output(trt8, force=force)
    source = fold_batchnorm(read_classifier(model))
    _check_data(source, data, options, model)
    found = measured(
        source, model, data, path=ranges, force=force, threads=options.threads, progress=progress
    )
    quantiser = Quantiser(equalise(source, found.widths), found.histograms, options)
    trial = Trial(quantiser, data, options)
    names = METHODS.usable() if options.method == "auto" else [options.method]
    with progress("comparing methods", len(names)) as advance:
        methods = {}
        for name in names:
            methods[name] = trial.measure(name, frozenset(options.float_layers))
            advance(1)
    method = best_method(methods)
    float_layers, sensitivity = _fallback(method, methods[method], trial, options, progress)
    made = quantiser.model(method, float_layers)
    parity, speed = _measure(model, made, data, options)
    if data.of_training:
        check_stated_accuracy(model, model_info(source, model), parity.baseline_accuracy, parity.images)
    fits = parity.drop <= options.max_drop
    result = Calibration(
        onnx=output if fits else None,
        precision=quantiser.precision(float_layers),
        method=method,
        parity=parity,
        methods=methods,
        float_layers=tuple(name for name in source.layers() if name in float_layers),
        reasons=_reasons(float_layers, sensitivity, methods[method], options),
        overflowing=tuple(quantiser.overflowing),
        sensitivity=sensitivity,
        speed=speed,
        options=options,
    )
    if fits:
        cache = _trt8_cache(source, method, data, options.threads) if trt8 else b""
        artifacts.remove_sidecar(output)
        artifacts.write_bytes(output, made.SerializeToString())
        artifacts.write_sidecar(output, _description(result, quantiser, model, made))
        if trt8:
            artifacts.write_bytes(trt8, cache)
    return result


def _measure(
    model: Path, made: onnx.ModelProto, data: CalibrationData, options: CalibrateOptions
) -> tuple[Comparison, Speed | None]:
    """Time the file in the form in which it will be written, beside the float file, in the user's
    sessions.
    """
    images, threads = data.test.stored, options.threads
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "quantised.onnx"
        written.write_bytes(made.SerializeToString())
        baseline, logits = (
            file_logits(path, images, data.preprocessing, threads=threads) for path in (model, written)
        )
        speed = None
        if options.target == "cpu":
            speed = compare_speed(model, written, threads=threads, seconds=options.timing_seconds)
    return compare_logits(baseline, logits, data.test.labels), speed


def _reasons(
    float_layers: frozenset[str],
    sensitivity: tuple[Sensitivity, ...],
    whole: Comparison,
    options: CalibrateOptions,
) -> dict[str, str]:
    """Layer kept in float -> reason."""
    gains = {entry.layer: entry.gain for entry in sensitivity}
    everywhere = (
        f"INT8 everywhere drops {whole.drop:.2f} points ({options.max_drop:g} allowed) "
        f"and has a logit error of {whole.relative_error:.1%}"
    )
    return {
        name: "asked for"
        if name in options.float_layers
        else f"{everywhere}, {gains[name]:.1%} of it by this layer"
        for name in sorted(float_layers)
    }


def _fallback(
    method: str, result: Comparison, trial: Trial, options: CalibrateOptions, progress: Progress
) -> tuple[frozenset[str], tuple[Sensitivity, ...]]:
    """The layers kept in float, and the table for that decision (empty if it wasn't needed)."""
    asked = frozenset(options.float_layers)
    if result.drop <= options.max_drop and not options.sensitivity:
        return asked, ()
    layers = [name for name in trial.quantiser.source.layers() if name not in asked]
    small = trial.on(options.sensitivity_images)
    with progress("measuring layers", len(layers)) as advance:
        table = sensitivities(layers, lambda kept: small.measure(method, asked | kept), advance=advance)
    if result.drop <= options.max_drop:
        return asked, tuple(table)
    ranked = [entry.layer for entry in table]
    kept, _ = layers_to_keep(
        ranked, lambda more: trial.measure(method, asked | more), max_drop=options.max_drop
    )
    return asked | kept, tuple(table)


def _trt8_cache(source: Classifier, method: str, data: CalibrationData, threads: int | None) -> bytes:
    """Write the cache for TensorRT 8, which reads it beside the unchanged float32 file."""
    histograms = collect(source, batches(data.ranges.images, data.preprocessing), threads=threads)
    return trt8_cache({name: METHODS[method](h, 127) for name, h in histograms.items()})


def _check_data(source: Classifier, data: CalibrationData, options: CalibrateOptions, model: Path) -> None:
    for what, part in (("calibrate", data.ranges), ("choose", data.selection), ("test", data.test)):
        if not len(part.labels):
            raise SlimdeployError(f"no images to {what} with")
        _, height, width = source.image_shape
        given_height, given_width = part.stored.shape[1:3]
        if (given_height, given_width) != (height, width):
            raise SlimdeployError(
                f"the images are {given_width}×{given_height}, but {model} takes {width}×{height}"
            )
    if data.preprocessing != (wanted := model_info(source, model).preprocessing):
        raise SlimdeployError(
            f"the images of `data` are made with {data.preprocessing}, but {model} takes {wanted}: load the "
            "data with the preprocessing of the model"
        )
    for name in options.float_layers:
        if name not in source.layers():
            raise unknown("layer", name, source.layers())


def _description(
    result: Calibration, quantiser: Quantiser, model: Path, made: onnx.ModelProto
) -> dict[str, Any]:
    """The sidecar: everything that determined the content of the file."""
    channels, height, width = quantiser.source.image_shape
    return {
        **{key: value for key, value in result.to_json().items() if key not in _NOT_OF_THE_FILE},
        "parent_sha256": artifacts.sha256_file(model),
        "opset": quantiser.source.opset,
        "shapes": {quantiser.source.input: ["batch", channels, height, width]},
        "thresholds": quantiser.thresholds(result.method),
        "quantised_layers": quantised_layers(made),
        "options": asdict(result.options),
        "versions": versions(),
    }
