"""The stage `export`: a checkpoint in, an ONNX file out that was compared with it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.checkpoint import load_checkpoint
from slimdeploy.toolchain.data.dataset import DataOptions, Split, balanced_subset
from slimdeploy.toolchain.errors import CheckFailed
from slimdeploy.toolchain.export.onnx import INPUT, build_onnx
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.export.parity import Parity, compare
from slimdeploy.toolchain.export.precision import overflowing_layers, to_fp16
from slimdeploy.toolchain.model_info import ModelInfo, versions
from slimdeploy.toolchain.training.stage import data_of, dataset_for


@dataclass(frozen=True)
class ExportResult:
    """The file written and the proof that it computes the same."""

    onnx: Path
    sha256: str
    precision: str
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        return {
            "onnx": str(self.onnx),
            "sha256": self.sha256,
            "precision": self.precision,
            "parity": asdict(self.parity),
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
    model, precision = build_onnx(parent.network, info, opset=options.opset), "fp32"
    if options.precision == "fp16":
        model, precision = _halved(model, balanced_subset(dataset.train, options.parity_images), info)
    images = balanced_subset(dataset.test, options.parity_images)
    candidate = output.with_name(f".{output.stem}.{os.getpid()}.candidate.onnx")
    try:
        artifacts.write_bytes(candidate, model.SerializeToString())
        parity = compare(parent.network, candidate, images, info.preprocessing)
        _check(parity, options, checkpoint)
        os.replace(candidate, output)
    finally:
        candidate.unlink(missing_ok=True)
    size = info.preprocessing.size
    description = {
        "parent_sha256": parent.sha256,
        "precision": precision,
        "opset": options.opset,
        "shapes": {INPUT: ["batch", 3, size, size]},
        "parity": asdict(parity),
        "versions": versions(),
    }
    artifacts.write_sidecar(output, description)
    return ExportResult(output, artifacts.sha256_file(output), precision, parity)


def _halved(model: onnx.ModelProto, images: Split, info: ModelInfo) -> tuple[onnx.ModelProto, str]:
    """The model in FP16 and its precision: `mixed` where a layer must stay in float32, since its
    activations on `images` go beyond FP16.
    """
    from slimdeploy.calibrate.classifier import classifier
    from slimdeploy.calibrate.collect import collect
    from slimdeploy.calibrate.inference import batches
    from slimdeploy.calibrate.qdq import set_precision

    seen = collect(classifier(model, source="the network"), batches(images.images, info.preprocessing))
    beyond = overflowing_layers(model, {name: values.largest for name, values in seen.items()})
    precision = "mixed" if beyond else "fp16"
    return set_precision(to_fp16(model, float_layers=set(beyond)), precision), precision


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
