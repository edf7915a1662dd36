"""What an export can be told, with defaults that work."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError, unknown

DEFAULT_OPSET = 19
OPSETS = (13, 22)
"""Lowest and highest opset that can be asked for. 17 is what TensorRT 8 (JetPack 5) reads."""


@dataclass(frozen=True)
class Tolerance:
    """How far an ONNX file may be from its checkpoint: a logit, and the share of equal top classes."""

    max_abs_error: float
    min_agreement: float


# FP16 rounds every activation to 11 bits: a logit of 20 may move by some hundredths.
TOLERANCES = {"fp32": Tolerance(1e-3, 0.999), "fp16": Tolerance(0.1, 0.99)}


@dataclass(frozen=True)
class ExportOptions:
    """How to export, and how far the result may be from torch; None is TOLERANCES of the precision."""

    opset: int = DEFAULT_OPSET
    parity_images: int = 512
    max_abs_error: float | None = None
    min_agreement: float | None = None
    precision: str = "fp32"

    @property
    def tolerance(self) -> Tolerance:
        usual = TOLERANCES[self.precision]
        return Tolerance(
            usual.max_abs_error if self.max_abs_error is None else self.max_abs_error,
            usual.min_agreement if self.min_agreement is None else self.min_agreement,
        )

    def __post_init__(self) -> None:
        if self.precision not in TOLERANCES:
            raise unknown("precision", self.precision, TOLERANCES)
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise SlimdeployError(f"opset {self.opset}: {OPSETS[0]} to {OPSETS[1]} can be written")
        if self.parity_images < 1:
            raise SlimdeployError(f"parity-images must be at least 1, not {self.parity_images}")
