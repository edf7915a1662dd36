"""What an export can be told, with defaults that work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimdeploy.toolchain.declared import check_declared, option

DEFAULT_OPSET = 19
TARGETS = ("tensorrt", "cpu")
OPSETS = (13, 22)
"""Lowest and highest opset that can be asked for. 17 is what TensorRT 8 (JetPack 5) reads."""


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from torch."""

    max_abs_error: float
    """Of a logit."""
    min_agreement: float
    """Share of images with the same top class."""


PRECISIONS = {
    "fp32": Tolerance(1e-3, 0.999),
    "fp16": Tolerance(0.1, 0.99),
    "int8": Tolerance(float("inf"), 0.9),  # its own guard is the accuracy that it may cost
}


@dataclass(frozen=True)
class ExportOptions:
    """How to export, and how far the result may be from torch: None goes by the precision."""

    opset: int = option(
        DEFAULT_OPSET, "ONNX opset; 17 is what TensorRT 8 reads.", least=OPSETS[0], most=OPSETS[1]
    )
    precision: str = option(
        "fp32", "int8 takes the defaults of calibration, which has more choices.", choices=PRECISIONS
    )
    target: str = option(
        "tensorrt", "Where an int8 file will run: tensorrt, or cpu (onnxruntime).", choices=TARGETS
    )
    parity_images: int = option(512, "Test images to compare on.", least=1)
    max_abs_error: float | None = option(
        None, "Allowed difference of a logit.", least=0, unset="by the precision"
    )
    min_agreement: float | None = option(
        None,
        "Share of images whose top class must be the same.",
        least=0,
        unset="by the precision",
    )

    @property
    def tolerance(self) -> Tolerance:
        own = {"max_abs_error": self.max_abs_error, "min_agreement": self.min_agreement}
        return replace(PRECISIONS[self.precision], **{k: v for k, v in own.items() if v is not None})

    def __post_init__(self) -> None:
        check_declared(self)
