"""What the stage `calibrate` works on, and how."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.calibrate.qdq import FORMS
from slimdeploy.calibrate.thresholds import METHODS
from slimdeploy.toolchain.checks import MAX_THREADS
from slimdeploy.toolchain.data.dataset import Dataset, Split, balanced_subset
from slimdeploy.toolchain.declared import check_declared, option
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import Preprocessing

HELD_OUT = 0.1
"""Share of the training images to choose with: the validation split that training holds out by default."""


@dataclass(frozen=True)
class CalibrationData:
    """`ranges` to measure activations on, `selection` to choose with (method, float layers), `test` for the
    figure that is reported. No image is in two of them.
    """

    ranges: Split
    selection: Split
    test: Split
    preprocessing: Preprocessing


def calibration_data(
    dataset: Dataset, *, images: int = 1000, selection_images: int = 2000, test_images: int | None = None
) -> CalibrationData:
    """Class-balanced parts of `dataset`, which has the model's own preprocessing; None takes all test
    images.
    """
    seen, held_out = dataset.held_out(HELD_OUT)
    return CalibrationData(
        ranges=balanced_subset(seen, images),
        selection=balanced_subset(held_out, selection_images),
        test=balanced_subset(dataset.test, test_images),
        preprocessing=dataset.preprocessing,
    )


@dataclass(frozen=True)
class CalibrateOptions:
    """How to quantise."""

    method: str = option(
        "auto",
        "Where ranges are clipped; auto takes the method that keeps the accuracy best.",
        choices=METHODS,
        also=("auto",),
    )
    target: str = option("tensorrt", "Where it will run: tensorrt, or cpu (onnxruntime).", choices=FORMS)
    compute: str = option(
        "fp32",
        "What is not INT8 computes in fp32 or fp16 (tensorrt only, opset 19 or more).",
        choices=("fp32", "fp16"),
    )
    max_drop: float = option(
        1.0,
        "Accuracy that INT8 may cost, in percentage points; the most sensitive layers stay in float until it "
        "fits.",
        least=0,
    )
    sensitivity: bool = option(False, "Measure what each layer costs in any case.")
    sensitivity_images: int = option(500, "Held-out images to measure that on.", least=1)
    float_layers: tuple[str, ...] = option(
        (), "Leave this layer in float, whatever it costs; may be repeated.", flag="--keep"
    )
    threads: int | None = option(None, "CPU threads.", least=1, most=MAX_THREADS, unset="all cores")
    timing_seconds: float = option(1.0, "With the target cpu: how long to time each file.", least=0)

    def __post_init__(self) -> None:
        check_declared(self)
        if self.compute == "fp16" and self.target == "cpu":
            raise SlimdeployError("`compute` fp16 is for `target` tensorrt: onnxruntime's CPU has no FP16")
