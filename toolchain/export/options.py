"""Options of an export and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.declared import check_declared, option

DEFAULT_OPSET = 19
TARGETS = ("tensorrt", "cpu")
OPSETS = (13, 22)
"""Lowest and highest supported opset. TensorRT 8 (JetPack 5) reads up to 17."""


@dataclass(frozen=True)
class Tolerance:
    """Allowed difference between an export and torch."""

    relative_error: float
    """Difference of a logit, relative to the largest logit."""
    min_agreement: float
    """Share of images with the same top-1 class."""


PRECISIONS = {
    "fp32": Tolerance(1e-4, 0.999),
    "fp16": Tolerance(0.01, 0.99),
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
    max_abs_error: float | None = option(
        None,
        "Maximum logit difference.",
        least=0,
        unset="0.01 % of the largest logit in fp32, 1 % in fp16",
    )
    min_agreement: float | None = option(
        None,
        "Minimum share of images with the same top-1 class.",
        least=0,
        most=1,
        unset="0.999 in fp32, 0.99 in fp16, 0.9 in int8",
    )

    def __post_init__(self) -> None:
        check_declared(self)
