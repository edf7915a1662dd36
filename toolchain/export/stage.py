"""The stage `export`: a checkpoint in, an ONNX file out that was compared with it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.checkpoint import load_checkpoint
from slimdeploy.toolchain.data.dataset import DataOptions, balanced_subset
from slimdeploy.toolchain.errors import CheckFailed
from slimdeploy.toolchain.export.onnx import INPUT, build_onnx
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.export.parity import Parity, compare
from slimdeploy.toolchain.model_info import versions
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
    """Export `checkpoint` as float32 ONNX to `output` with its sidecar, and compare both on real test images.

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
        "precision": "fp32",
        "opset": options.opset,
        "shapes": {INPUT: ["batch", 3, size, size]},
        "parity": asdict(parity),
        "versions": versions(),
    }
    artifacts.write_sidecar(output, description)
    return ExportResult(output, artifacts.sha256_file(output), "fp32", parity)


def _check(parity: Parity, options: ExportOptions, checkpoint: Path) -> None:
    if not parity.max_abs_error <= options.max_abs_error:  # not `>`: NaN must fail too
        raise CheckFailed(
            f"{checkpoint}: the ONNX logits are off by {parity.max_abs_error:.2g} on {parity.images} images "
            f"({options.max_abs_error:g} allowed); no file written"
        )
    if parity.top1_agreement < options.min_agreement:
        raise CheckFailed(
            f"{checkpoint}: ONNX and torch agree on {parity.top1_agreement:.2%} of {parity.images} images "
            f"({options.min_agreement:.2%} needed); no file written"
        )
