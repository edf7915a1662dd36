"""Options of an export and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimdeploy.toolchain.declared import check_declared, option

DEFAULT_OPSET = 19
TARGETS = ("tensorrt", "cpu")
OPSETS = (13, 22)
"""Lowest and highest supported opset. TensorRT 8 (JetPack 5) reads up to 17."""


@dataclass(frozen=True)
class Tolerance:
    """Allowed difference between an export and torch."""

    max_abs_error: float
    """Of a logit."""
    min_agreement: float
    """Share of images with the same top-1 class."""


PRECISIONS = {
    "fp32": Tolerance(1e-3, 0.999),
    "fp16": Tolerance(0.1, 0.99),
    "int8": Tolerance(float("inf"), 0.9),  # limited by its loss of accuracy instead
}


@dataclass(frozen=True)
class ExportOptions:
    """Options of the export; tolerances that are None depend on the precision."""

    opset: int = option(
        DEFAULT_OPSET, "ONNX opset; TensorRT 8 reads up to 17.", least=OPSETS[0], most=OPSETS[1]
    )
    precision: str = option(
        "fp32",
        "int8 uses the defaults of `slimdeploy calibrate`, which has more options.",
        choices=PRECISIONS,
    )
    target: str = option(
        "tensorrt",
        "Runtime of an int8 file: tensorrt, or cpu (onnxruntime).",
        choices=TARGETS,
        needs="precision int8",
    )
    parity_images: int = option(512, "Number of test images for the comparison.", least=1)
    max_abs_error: float | None = option(None, "Maximum logit difference.", least=0, unset="by the precision")
    min_agreement: float | None = option(
        None,
        "Minimum share of images with the same top-1 class.",
        least=0,
        most=1,
        unset="by the precision",
    )

    @property
    def tolerance(self) -> Tolerance:
        own = {"max_abs_error": self.max_abs_error, "min_agreement": self.min_agreement}
        return replace(PRECISIONS[self.precision], **{k: v for k, v in own.items() if v is not None})

    def __post_init__(self) -> None:
        check_declared(self)
