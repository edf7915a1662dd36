"""What pruning can be told, with defaults that work."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError


@dataclass(frozen=True)
class PruneOptions:
    """What to remove and how."""

    ratio: float = 0.9
    """Share of all prunable channels."""
    criterion: str = "gamma"
    min_channels: int = 3
    fold: bool = True
    recalibration_images: int = 5120

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise SlimdeployError(f"ratio must be from 0 to below 1, not {self.ratio:g}")
        if self.min_channels < 1:
            raise SlimdeployError(f"min-channels must be at least 1, not {self.min_channels}")
