"""`slimdeploy.export`: convert a network to an ONNX file and compare both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from slimdeploy.calibrate.classifier import classifier
from slimdeploy.calibrate.collect import collect
from slimdeploy.calibrate.inference import batches
from slimdeploy.calibrate.options import CalibrateOptions, calibration_data
from slimdeploy.calibrate.qdq import set_precision
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import Dataset, Split, balanced_subset
from slimdeploy.toolchain.data.feed import Batch, LoaderFeed
from slimdeploy.toolchain.errors import CheckFailed, SlimdeployError
from slimdeploy.toolchain.export.onnx import INPUT, build_onnx
from slimdeploy.toolchain.export.options import PRECISIONS, ExportOptions
from slimdeploy.toolchain.export.parity import Parity, compare, normalised
from slimdeploy.toolchain.export.precision import overflowing_layers, to_fp16
from slimdeploy.toolchain.file_kinds import ONNX
from slimdeploy.toolchain.library.from_module import checkpoint_for
from slimdeploy.toolchain.library.keywords import takes
from slimdeploy.toolchain.library.quantize import quantize
from slimdeploy.toolchain.models.checkpoint import Checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo, versions


@dataclass(frozen=True)
class ExportResult:
    """The written file and the result of the comparison."""

    onnx: Path
    sha256: str
    precision: str
    parity: Parity
    fp32_layers: tuple[str, ...] = ()
    """Layers of an FP16 model that are kept in FP32, because their values overflow in FP16."""

    def to_json(self) -> dict[str, Any]:
        return {
            "onnx": str(self.onnx),
            "sha256": self.sha256,
            "precision": self.precision,
            "parity": asdict(self.parity),
            "fp32_layers": list(self.fp32_layers),
            "engine": None,
        }


@takes(ExportOptions)
def export(
    network: Checkpoint | nn.Module,
    *,
    output: str | Path,
    data: Dataset | Iterable[Batch],
    size: int | None = None,
    force: bool = False,
    options: ExportOptions,
) -> ExportResult:
    """Write `network` as ONNX with BN folded, and compare both on `data` (the test images of a dataset).

    Args:
        network: A checkpoint, or a module that takes images (N, C, size, size) float32 and returns
            logits (N, classes).
        output: The ONNX file to write; a JSON file with hashes, shapes and versions is written beside it.
        data: A dataset, or batches of images (N, C, size, size) float32, normalised, and labels (N,). FP16
            and INT8 require a dataset.
        size: Side of the images in pixels. Required for a module.
        force: Replace `output` if it exists.

    Returns:
        The file, its SHA-256, its precision, and the difference of its logits from the network's.

    Raises:
        CheckFailed: The two differ by more than the options allow; no file is written then.
        SlimdeployError: An existing output, invalid options or invalid data.
    """
    output = Path(output)
    artifacts.check_output(output, force=force, kind=ONNX)
    parent = checkpoint_for(network, data, size=size)
    info = parent.info.after(
        "export", metrics=parent.info.metrics, parent=parent.sha256, options=asdict(options)
    )
    model = build_onnx(parent.network, info, opset=options.opset)
    fp32_layers: tuple[str, ...] = ()
    if options.precision != "fp32":
        if not isinstance(data, Dataset):
            raise SlimdeployError(
                f"`precision` {options.precision} measures activations: pass a Dataset as `data`"
            )
        if options.precision == "fp16":
            model, fp32_layers = _half(model, balanced_subset(data.train, options.parity_images), data)
        else:
            model = _quantised(model, data, options.target, output)
    artifacts.make_folder(output.parent)
    with artifacts.folder_beside(output) as folder:
        candidate = folder / "candidate.onnx"
        artifacts.write_bytes(candidate, model.SerializeToString())
        parity = compare(parent.network, candidate, _parity_batches(data, info, options.parity_images))
        _check(parity, options, output)
        artifacts.remove_sidecar(output)
        os.replace(candidate, output)
    precision = next(entry.value for entry in model.metadata_props if entry.key == "precision")
    description = {
        "parent_sha256": parent.sha256,
        "precision": precision,
        "fp32_layers": list(fp32_layers),
        "opset": options.opset,
        "shapes": {INPUT: ["batch", *info.preprocessing.image_shape]},
        "parity": asdict(parity),
        "versions": versions(),
    }
    artifacts.write_sidecar(output, description)
    return ExportResult(output, artifacts.sha256_file(output), precision, parity, fp32_layers)


def _parity_batches(data: Dataset | Iterable[Batch], info: ModelInfo, images: int) -> Iterator[np.ndarray]:
    if isinstance(data, Dataset):
        return normalised(balanced_subset(data.test, images), data.preprocessing)
    feed = LoaderFeed(data, "cpu", info.preprocessing.image_shape, info.graph.classes, images)
    return (batch.numpy() for batch, _ in feed)


def _half(model: onnx.ModelProto, images: Split, dataset: Dataset) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model in FP16, and the layers kept in FP32 because their values overflow on `images`."""
    histograms = collect(
        classifier(model, source="the export"), batches(images.stored, dataset.preprocessing)
    )
    kept = overflowing_layers(model, {name: h.largest for name, h in histograms.items()})
    half = to_fp16(model, float_layers=set(kept))
    return set_precision(half, "mixed" if kept else "fp16"), tuple(kept)


def _quantised(model: onnx.ModelProto, dataset: Dataset, target: str, output: Path) -> onnx.ModelProto:
    """The model in INT8 for `target`, as by `slimdeploy calibrate` with its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / f"{output.stem}.fp32.onnx", Path(folder) / output.name
        artifacts.write_bytes(source, model.SerializeToString())
        result = quantize(
            source, data=calibration_data(dataset), options=CalibrateOptions(target=target), output=made
        )
        if result.onnx is None:
            raise CheckFailed(
                f"{output}: INT8 loses {result.parity.drop:.2f} points of accuracy; no file written "
                "(slimdeploy calibrate shows the loss of each layer)"
            )
        return onnx.load(made)


def _check(parity: Parity, options: ExportOptions, output: Path) -> None:
    default = PRECISIONS[options.precision]
    allowed, needed = options.max_abs_error, options.min_agreement
    if allowed is None:
        allowed = default.relative_error * parity.largest_logit
    if needed is None:
        needed = default.min_agreement
    if not parity.max_abs_error <= allowed:  # not `>`: NaN must fail too
        raise CheckFailed(
            f"{output}: the ONNX logits differ by {parity.max_abs_error:.2g} on {parity.images} images "
            f"({allowed:.2g} allowed); no file written"
        )
    if parity.top1_agreement < needed:
        raise CheckFailed(
            f"{output}: ONNX and torch agree on {parity.top1_agreement:.2%} of {parity.images} images "
            f"({needed:.2%} needed); no file written"
        )
