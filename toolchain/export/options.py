"""What an export can be told, with defaults that work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimdeploy.toolchain.errors import SlimdeployError, unknown

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

    opset: int = DEFAULT_OPSET
    precision: str = "fp32"
    target: str = "tensorrt"
    """Where an INT8 file will run: `tensorrt`, or `cpu` (onnxruntime)."""
    parity_images: int = 512
    max_abs_error: float | None = None
    min_agreement: float | None = None

    @property
    def tolerance(self) -> Tolerance:
        own = {"max_abs_error": self.max_abs_error, "min_agreement": self.min_agreement}
        return replace(PRECISIONS[self.precision], **{k: v for k, v in own.items() if v is not None})

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.target not in TARGETS:
            raise unknown("target", self.target, TARGETS)
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise SlimdeployError(f"opset {self.opset}: {OPSETS[0]} to {OPSETS[1]} can be written")
        if self.parity_images < 1:
            raise SlimdeployError(f"parity-images must be at least 1, not {self.parity_images}")
