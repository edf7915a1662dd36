"""What an export can be told, with defaults that work."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError

DEFAULT_OPSET = 19
OPSETS = (13, 22)
"""Lowest and highest opset that can be asked for. 17 is what TensorRT 8 (JetPack 5) reads."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export, and how far the result may be from torch."""

    opset: int = DEFAULT_OPSET
    parity_images: int = 512
    max_abs_error: float = 1e-3
    min_agreement: float = 0.999

    def __post_init__(self) -> None:
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise SlimdeployError(f"opset {self.opset}: {OPSETS[0]} to {OPSETS[1]} can be written")
        if self.parity_images < 1:
            raise SlimdeployError(f"parity-images must be at least 1, not {self.parity_images}")
