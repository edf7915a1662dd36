"""Images and options of the stage `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.calibrate.qdq import FORMS
from slimdeploy.calibrate.thresholds import METHODS
from slimdeploy.toolchain.checks import MAX_THREADS
from slimdeploy.toolchain.data.dataset import Dataset, Split, balanced_subset
from slimdeploy.toolchain.declared import check_declared, option
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing

HELD_OUT = 0.1
"""Share of the training images for selection: the validation split that training holds out by default. With a
smaller --validation or with --limit, training has seen a part of them.
"""


@dataclass(frozen=True)
class CalibrationData:
    """`ranges`: images to measure activations on; `selection`: images to choose method and float layers;
    `test`: images for the reported accuracy. No image is in two of them.
    """

    ranges: Split
    selection: Split
    test: Split
    preprocessing: Preprocessing
    of_training: bool = False
    """Whether the model was trained on this data: its stated accuracy is then checked."""


def calibration_data(
    dataset: Dataset,
    *,
    images: int = 1000,
    selection_images: int = 2000,
    test_images: int | None = None,
    of_training: bool = False,
) -> CalibrationData:
    """Class-balanced parts of `dataset`, which has the model's preprocessing; None: all test images. Parts
    that are used repeatedly are read into memory.
    """
    seen, held_out = dataset.held_out(HELD_OUT)
    return CalibrationData(
        ranges=balanced_subset(seen, images).in_memory(),
        selection=balanced_subset(held_out, selection_images).in_memory(),
        test=balanced_subset(dataset.test, test_images),
        preprocessing=dataset.preprocessing,
        of_training=of_training,
    )


@dataclass(frozen=True)
class CalibrateOptions:
    """How to quantise."""

    method: str = option(
        "auto",
        "Method that chooses the clipping threshold; auto: the most accurate one.",
        choices=METHODS,
        also=("auto",),
    )
    target: str = option(
        "tensorrt", "Runtime of the INT8 file: tensorrt, or cpu (onnxruntime).", choices=FORMS
    )
    compute: str = option(
        "fp32",
        "Precision of the layers that are not INT8; fp16: only tensorrt, opset 19 or later.",
        choices=("fp32", "fp16"),
    )
    max_drop: float = option(
        1.0,
        "Maximum loss of accuracy in percentage points; the most sensitive layers stay in float until it "
        "fits.",
        least=0,
    )
    sensitivity: bool = option(False, "Always measure the sensitivity of each layer.")
    sensitivity_images: int = option(500, "Selection images to measure the sensitivity on.", least=1)
    float_layers: tuple[str, ...] = option((), "Keep this layer in float. Repeatable.", flag="--keep")
    threads: int | None = option(None, "CPU threads.", least=1, most=MAX_THREADS, unset="all cores")
    timing_seconds: float = option(1.0, "Seconds to time each file.", least=0, needs="target cpu")

    def __post_init__(self) -> None:
        check_declared(self)
        if self.compute == "fp16" and self.target == "cpu":
            raise SlimdeployError(
                "`compute` fp16 needs `target` tensorrt: onnxruntime has no FP16 on the CPU"
            )
