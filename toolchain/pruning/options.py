"""Options of pruning and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimdeploy.toolchain.checks import MAX_RATE, MAX_SEED
from slimdeploy.toolchain.declared import Form, check_declared, option
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.channel_groups import RESIDUAL_MODES
from slimdeploy.toolchain.pruning.criterion import CRITERIA

TARGETS = {"cpu": 8, "tensorrt": 8, "tensorrt-int8": 32}
"""Where the network will run -> the multiple of channels for which it needs no padding."""


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


AMOUNT = Form(parse_amount, "a number such as 3.94M", "AMOUNT")
ALIGNMENT = Form(parse_alignment, "auto or a whole number from 1, such as 8, 16 or 32", "auto|N")
BUDGETS = ("ratio", "params", "macs", "latency_ms")
"""The possible targets of a pruning."""


@dataclass(frozen=True)
class PruneOptions:
    """What to remove and how. Exactly one of BUDGETS is the target."""

    ratio: float | None = option(
        None, "Target: share of the prunable channels to remove, e.g. 0.5.", heading="Target"
    )
    params: float | None = option(None, "Target: maximum number of parameters, e.g. 3.94M.", form=AMOUNT)
    macs: float | None = option(
        None, "Target: maximum multiply-accumulates per image, e.g. 40M.", form=AMOUNT
    )
    latency_ms: float | None = option(None, "Target: maximum latency in ms, predicted by the latency table.")
    latency_table: str | None = option(
        None, "Latency table of the target machine, written by `slimdeploy lut`.", path=True
    )
    measure: bool = option(True, "Time the pruned network here and adjust the budget.", needs="latency_ms")
    criterion: str = option(
        "gamma",
        "Importance of a channel; taylor and surgeon need --data.",
        choices=CRITERIA,
        heading="What to remove",
    )
    residual: str = option(
        "keep",
        "keep: leave the outputs of blocks whole. couple: prune them too, in all blocks of a layer together.",
        choices=RESIDUAL_MODES,
    )
    align: int | None = option(
        None,
        "Round kept widths to a multiple of N; auto: by --target.",
        form=ALIGNMENT,
        unset="auto",
        least=1,
    )
    target: str = option("cpu", "Where the network will run: alignment 8, 8 or 32.", choices=TARGETS)
    min_channels: int = option(3, "Minimum number of channels kept in a layer.", least=1)
    allow_block_removal: bool = option(
        False, "Replace a block whose channels are all removed by its shortcut."
    )
    fold: bool = option(
        True, "Fold the constant outputs of removed channels into the next layers.", heading="After the cut"
    )
    compensate: bool = option(True, "Refit the next layers by least squares.", needs="data")
    statistics_images: int = option(
        2048, "Training images to measure activations on.", least=16, needs="data"
    )
    recalibration_images: int = option(
        5120, "Training images for the new BN statistics.", least=2, needs="data"
    )
    steps: int = option(
        1, "Number of pruning steps, with fine-tuning in between.", least=1, heading="In several steps"
    )
    step_epochs: int = option(1, "Epochs between two steps.", least=1, needs="steps")
    step_lr: float = option(0.01, "Peak learning rate between steps.", most=MAX_RATE, needs="steps")
    seed: int = option(0, "Random seed.", least=0, most=MAX_SEED)

    def __post_init__(self) -> None:
        check_declared(self)
        given = {name: value for name, value in self.budgets.items() if value is not None}
        if len(given) != 1:
            raise SlimdeployError(
                "give one target, `ratio`, `params`, `macs` or `latency_ms`, not "
                + (" and ".join(f"`{name}`" for name in given) or "none")
            )
        (name, value), *_ = given.items()
        if name == "ratio" and not 0 <= value < 1:
            raise SlimdeployError(f"`ratio` must be from 0 to below 1, not {value:g}")
        if name != "ratio" and value <= 0:
            raise SlimdeployError(f"`{name}` must be above 0, not {value:g}")
        if self.latency_ms is not None and self.latency_table is None:
            raise SlimdeployError("`latency_ms` needs a `latency_table`: slimdeploy lut … measures one")
        if self.latency_ms is None and self.latency_table is not None:
            raise SlimdeployError(f"`latency_table` is for the target `latency_ms`, not `{name}`")
        if self.step_lr <= 0:
            raise SlimdeployError(f"`step_lr` must be above 0, not {self.step_lr:g}")

    @property
    def budgets(self) -> dict[str, float | None]:
        """The value of each of BUDGETS."""
        return {name: getattr(self, name) for name in BUDGETS}

    @property
    def alignment(self) -> int:
        """The multiple to which widths are rounded."""
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
        return replace(self, ratio=ratio, params=None, macs=None, latency_ms=None, latency_table=None)
