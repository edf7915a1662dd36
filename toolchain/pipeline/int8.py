"""The stage `calibrate` of a run: quantise the final network to INT8, with images of its training data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from slimdeploy.calibrate.classifier import model_info, read_classifier
from slimdeploy.calibrate.options import calibration_data
from slimdeploy.toolchain.data.dataset import DataOptions, load_dataset
from slimdeploy.toolchain.errors import CheckFailed
from slimdeploy.toolchain.library.quantize import Calibration, quantize
from slimdeploy.toolchain.pipeline.choices import CalibrateChoice


def calibrate_final(
    model: Path, choice: CalibrateChoice, data: DataOptions, *, output: Path, threads: int | None
) -> Calibration:
    """Quantise the ONNX file `model` to `output`; raises CheckFailed if it loses more accuracy than `choice`
    allows.
    """
    images = calibration_data(
        load_dataset(data.fed_to(model_info(read_classifier(model), model).preprocessing)),
        images=choice.images,
        selection_images=choice.selection_images,
        test_images=choice.parity_images,
        of_training=True,
    )
    options = replace(choice, threads=choice.threads or threads)
    result = quantize(model, data=images, options=options, output=output, force=True)
    if problem := result.failure(model):
        raise CheckFailed(problem)
    return result
