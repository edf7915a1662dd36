"""The stage `export`: a checkpoint in, an ONNX file out that was compared with it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from slimdeploy.calibrate.classifier import classifier
from slimdeploy.calibrate.collect import collect
from slimdeploy.calibrate.inference import batches
from slimdeploy.calibrate.options import CalibrateOptions, calibration_data
from slimdeploy.calibrate.qdq import set_precision
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, Split, balanced_subset
from slimdeploy.toolchain.data.of_model import data_of, dataset_for
from slimdeploy.toolchain.errors import CheckFailed
from slimdeploy.toolchain.export.onnx import INPUT, build_onnx
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.export.parity import Parity, compare
from slimdeploy.toolchain.export.precision import overflowing_layers, to_fp16
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.models.model_info import versions
from slimdeploy.toolchain.stages.calibrate import calibrate_stage


@dataclass(frozen=True)
class ExportResult:
    """The file written and the proof that it computes the same."""

    onnx: Path
    sha256: str
    precision: str
    parity: Parity
    fp32_layers: tuple[str, ...] = ()
    """Layers of an FP16 model that stayed in FP32, because FP16 can't hold their values."""

    def to_json(self) -> dict[str, Any]:
        return {
            "onnx": str(self.onnx),
            "sha256": self.sha256,
            "precision": self.precision,
            "parity": asdict(self.parity),
            "fp32_layers": list(self.fp32_layers),
            "engine": None,
        }


def export_stage(
    checkpoint: Path,
    *,
    options: ExportOptions,
    output: Path,
    data: DataOptions | None = None,
    force: bool = False,
) -> ExportResult:
    """Export `checkpoint` as ONNX to `output` with its sidecar, and compare both on real test images.

    `data` None means the data that the network was trained on. Raises CheckFailed where they differ by more
    than the options allow; no file is left then.
    """
    artifacts.check_output(output, force=force)
    parent = load_checkpoint(checkpoint)
    dataset = dataset_for(parent.info, data or data_of(parent.info, checkpoint), checkpoint)
    info = parent.info.after(
        "export", metrics=parent.info.metrics, parent=parent.sha256, options=asdict(options)
    )
    model = build_onnx(parent.network, info, opset=options.opset)
    fp32_layers: tuple[str, ...] = ()
    if options.precision == "fp16":
        model, fp32_layers = _half(model, balanced_subset(dataset.train, options.parity_images), dataset)
    elif options.precision == "int8":
        model = _quantised(model, dataset, options.target, output)
    images = balanced_subset(dataset.test, options.parity_images)
    candidate = output.with_name(f".{output.stem}.{os.getpid()}.candidate.onnx")
    try:
        artifacts.write_bytes(candidate, model.SerializeToString())
        parity = compare(parent.network, candidate, images, info.preprocessing)
        _check(parity, options, checkpoint)
        artifacts.remove_sidecar(output)
        os.replace(candidate, output)
    finally:
        candidate.unlink(missing_ok=True)
    size = info.preprocessing.size
    precision = next(entry.value for entry in model.metadata_props if entry.key == "precision")
    description = {
        "parent_sha256": parent.sha256,
        "precision": precision,
        "fp32_layers": list(fp32_layers),
        "opset": options.opset,
        "shapes": {INPUT: ["batch", 3, size, size]},
        "parity": asdict(parity),
        "versions": versions(),
    }
    artifacts.write_sidecar(output, description)
    return ExportResult(output, artifacts.sha256_file(output), precision, parity, fp32_layers)


def _half(model: onnx.ModelProto, images: Split, dataset: Dataset) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model in FP16, and the layers that stay in FP32: those whose values overflow on `images`."""
    histograms = collect(
        classifier(model, source="the export"), batches(images.images, dataset.preprocessing)
    )
    kept = overflowing_layers(model, {name: h.largest for name, h in histograms.items()})
    half = to_fp16(model, float_layers=set(kept))
    return set_precision(half, "mixed" if kept else "fp16"), tuple(kept)


def _quantised(model: onnx.ModelProto, dataset: Dataset, target: str, output: Path) -> onnx.ModelProto:
    """The model in INT8 for `target`, as `slimdeploy calibrate` makes it with its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / f"{output.stem}.fp32.onnx", Path(folder) / output.name
        artifacts.write_bytes(source, model.SerializeToString())
        result = calibrate_stage(
            source, data=calibration_data(dataset), options=CalibrateOptions(target=target), output=made
        )
        if result.onnx is None:
            raise CheckFailed(
                f"{output}: INT8 loses {result.parity.drop:.2f} points of accuracy; no file written "
                "(slimdeploy calibrate shows what costs them)"
            )
        return onnx.load(made)


def _check(parity: Parity, options: ExportOptions, checkpoint: Path) -> None:
    allowed = options.tolerance
    if not parity.max_abs_error <= allowed.max_abs_error:  # not `>`: NaN must fail too
        raise CheckFailed(
            f"{checkpoint}: the ONNX logits are off by {parity.max_abs_error:.2g} on {parity.images} images "
            f"({allowed.max_abs_error:g} allowed); no file written"
        )
    if parity.top1_agreement < allowed.min_agreement:
        raise CheckFailed(
            f"{checkpoint}: ONNX and torch agree on {parity.top1_agreement:.2%} of {parity.images} images "
            f"({allowed.min_agreement:.2%} needed); no file written"
        )
