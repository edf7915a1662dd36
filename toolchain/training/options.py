"""What a training run can be told, with defaults that work, and what it reports back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.training.schedules import SCHEDULES

PRECISIONS = ("auto", "fp32", "bf16")
SPARSITY_STEPS = ("proximal", "subgradient")
SPARSE_LAYERS = ("prunable", "all")


@dataclass(frozen=True)
class TrainOptions:
    """Options of one run. Raises SlimdeployError when built with values that make no sense."""

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    """Peak learning rate."""
    schedule: str = "one-cycle"
    step_epochs: int = 30
    """`step` schedule: epochs between two divisions of the learning rate by 10."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """On convolution and classifier weights only: never on γ, β or biases."""
    label_smoothing: float = 0.0
    sparsity: float = 0.0
    """λ of the L1 penalty on γ."""
    sparsity_step: str = "proximal"
    sparse_layers: str = "prunable"
    """Which γ: those of channels that pruning can remove, or `all`."""
    validation: float = 0.1
    """Share of the training images held out."""
    patience: int | None = None
    """Stop after so many epochs without a better validation accuracy, and keep the best epoch's weights."""
    crop_pad: int = 4
    flip: bool = True
    limit: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for what, value, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
            ("sparsity step", self.sparsity_step, SPARSITY_STEPS),
            ("sparse layers", self.sparse_layers, SPARSE_LAYERS),
        ):
            if value not in known:
                raise unknown(what, value, known)
        _at_least("epochs", self.epochs, 0)
        _at_least("batch-size", self.batch_size, 2)  # BN needs two images
        _at_least("sparsity", self.sparsity, 0)
        _at_least("crop-pad", self.crop_pad, 0)
        _at_least("step-epochs", self.step_epochs, 1)
        _at_least("weight-decay", self.weight_decay, 0)
        for name, count in (("patience", self.patience), ("limit", self.limit)):
            if count is not None:
                _at_least(name, count, 1)
        for name, share in (("momentum", self.momentum), ("label-smoothing", self.label_smoothing)):
            if not 0 <= share < 1:
                raise SlimdeployError(f"{name} must be from 0 to below 1, not {share:g}")
        if not 0 < self.validation < 1:
            raise SlimdeployError(f"validation must be a share between 0 and 1, not {self.validation:g}")
        if self.lr <= 0:
            raise SlimdeployError(f"lr must be above 0, not {self.lr:g}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EpochRecord:
    """One line of the history."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    zero_share: float
    """Share of the penalised γ that are exactly zero."""
    images_per_second: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise SlimdeployError(f"{name} must be at least {least:g}, not {value:g}")
