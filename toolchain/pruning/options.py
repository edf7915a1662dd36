"""What pruning can be told, with defaults that work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimdeploy.toolchain.checks import MAX_RATE, MAX_SEED, check_finite, check_range
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.networks.channel_groups import RESIDUAL_MODES
from slimdeploy.toolchain.pruning.criterion import CRITERIA

TARGETS = {"cpu": 8, "tensorrt": 8, "tensorrt-int8": 32}
"""Where the network will run -> the multiple of channels that it computes without padding."""


def parse_amount(text: str) -> float:
    """The number that `3.94M`, `40M`, `1.3G` or `837000` stands for; raises ValueError."""
    factors = {"k": 1e3, "m": 1e6, "g": 1e9}
    unit = text.strip()[-1:].lower()
    return float(text.strip()[:-1]) * factors[unit] if unit in factors else float(text)


def parse_alignment(text: str) -> int | None:
    """A whole number from 1 on, or None for `auto`; raises ValueError."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(text)
    return int(text)


@dataclass(frozen=True)
class PruneOptions:
    """What to remove and how. Exactly one of `ratio`, `params`, `macs` and `latency_ms` is the target."""

    ratio: float | None = None
    """Share of all prunable channels to remove."""
    params: float | None = None
    macs: float | None = None
    """For one image."""
    latency_ms: float | None = None
    latency_table: str | None = None
    measure: bool = True
    """On the machine of the latency table: measure what it predicts, and correct that."""
    criterion: str = "gamma"
    residual: str = "keep"
    align: int | None = None
    """Multiple that kept widths are rounded to; None takes the target's."""
    target: str = "cpu"
    min_channels: int = 3
    allow_block_removal: bool = False
    fold: bool = True
    compensate: bool = True
    """Where there is data: let the kept channels take over what the removed ones carried."""
    statistics_images: int = 2048
    recalibration_images: int = 5120
    steps: int = 1
    """Prune in so many steps, with `step_epochs` of fine-tuning between them."""
    step_epochs: int = 1
    step_lr: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        check_finite(self)
        given = {name: value for name, value in self.budgets.items() if value is not None}
        if len(given) != 1:
            raise SlimdeployError(
                f"give one target, ratio, params, macs or latency-ms, not {' and '.join(given) or 'none'}"
            )
        (name, value), *_ = given.items()
        if name == "ratio" and not 0 <= value < 1:
            raise SlimdeployError(f"ratio must be from 0 to below 1, not {value:g}")
        if name != "ratio" and value <= 0:
            raise SlimdeployError(f"{name.replace('_', '-')} must be above 0, not {value:g}")
        if self.latency_ms is not None and self.latency_table is None:
            raise SlimdeployError("latency-ms needs a latency-table: slimdeploy lut … measures one")
        CRITERIA.check(self.criterion)
        if self.residual not in RESIDUAL_MODES:
            raise unknown("residual mode", self.residual, RESIDUAL_MODES)
        if self.target not in TARGETS:
            raise unknown("target", self.target, TARGETS)
        for name in ("min_channels", "steps", "step_epochs", "alignment", "recalibration_images"):
            check_range(name, getattr(self, name), 1)
        check_range("statistics_images", self.statistics_images, 16)
        check_range("seed", self.seed, 0, MAX_SEED)
        if self.step_lr <= 0:
            raise SlimdeployError(f"step-lr must be above 0, not {self.step_lr:g}")
        check_range("step_lr", self.step_lr, 0, MAX_RATE)

    @property
    def budgets(self) -> dict[str, float | None]:
        """The four ways to say how small."""
        return {
            "ratio": self.ratio,
            "params": self.params,
            "macs": self.macs,
            "latency_ms": self.latency_ms,
        }

    @property
    def alignment(self) -> int:
        """The multiple in force."""
        return TARGETS[self.target] if self.align is None else self.align

    def describe(self) -> str:
        """The target in words."""
        if self.ratio is not None:
            return f"pruned {self.ratio:.0%}"
        for value, unit in ((self.params, "parameters"), (self.macs, "MACs")):
            if value is not None:
                return f"pruned to {value / 1e6:g} M {unit}"
        return f"pruned to {self.latency_ms:g} ms"

    def at_ratio(self, ratio: float) -> PruneOptions:
        """The same with another target: `ratio`."""
        return replace(self, ratio=ratio, params=None, macs=None, latency_ms=None)
