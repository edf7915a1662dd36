"""What the stage `calibrate` works on, and how."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.calibrate.qdq import FORMS
from slimdeploy.calibrate.thresholds import METHODS
from slimdeploy.toolchain.data.dataset import Dataset, Split, balanced_subset
from slimdeploy.toolchain.errors import SlimdeployError, unknown
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

    method: str = "auto"
    target: str = "tensorrt"
    compute: str = "fp32"
    """What the layers that aren't INT8 compute in: `fp32` or `fp16`."""
    max_drop: float = 1.0
    """Accuracy that INT8 may cost, in percentage points."""
    sensitivity: bool = False
    """Measure what every layer costs even where nothing has to stay in float."""
    sensitivity_images: int = 500
    float_layers: tuple[str, ...] = ()
    """Layers that stay in float whatever they cost."""
    threads: int | None = None
    timing_seconds: float = 1.0
    """How long to time each file on this CPU, for the target `cpu`."""

    def __post_init__(self) -> None:
        if self.method != "auto":
            METHODS.check(self.method)
        if self.target not in FORMS:
            raise unknown("target", self.target, FORMS)
        if self.compute not in ("fp32", "fp16"):
            raise unknown("compute", self.compute, ("fp32", "fp16"))
        if self.compute == "fp16" and self.target == "cpu":
            raise SlimdeployError("--compute fp16 is for --target tensorrt: onnxruntime's CPU has no FP16")
