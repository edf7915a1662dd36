"""What a training run can be told, with defaults that work, and what it reports back."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any

from slimdeploy.toolchain.checks import (
    MAX_BATCH,
    MAX_IMAGE_SIZE,
    MAX_RATE,
    MAX_SEED,
    check_finite,
    check_range,
)
from slimdeploy.toolchain.data.augmentation import Augmentation
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.training.schedules import SCHEDULES

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SPARSITY_STEPS = ("proximal", "subgradient")
SPARSE_LAYERS = ("prunable", "all")
FLIP_MODES = ("random", "alternating")
AUGMENTATIONS = {
    "cifar": {"crop_pad": 4, "resized_crop": 0.0},
    "imagenet": {"crop_pad": 0, "resized_crop": 0.08},
}
"""`--augmentation` -> how images are cropped: for some 32 pixels; for 224, as torchvision trains."""
AUTO = "auto:"
_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (0, 10**6),
    "batch_size": (2, MAX_BATCH),  # BN needs two images
    "sparse_align": (1, MAX_IMAGE_SIZE),
    "crop_pad": (0, 256),
    "cutout": (0, MAX_IMAGE_SIZE),
    "resized_crop": (0, 1),
    "color_jitter": (0, 1),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "recalibration_images": (0, math.inf),
    "step_epochs": (1, math.inf),
    "weight_decay": (0, MAX_RATE),
    "patience": (1, math.inf),
    "limit": (1, math.inf),
    "seed": (0, MAX_SEED),
}
"""Least and greatest value of each option that is a count."""


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
    sparsity: float | str = 0.0
    """λ of the L1 penalty on γ; or `auto:SHARE`, which steers λ so that this share is exactly zero at the
    end.
    """
    sparsity_step: str = "proximal"
    sparse_layers: str = "prunable"
    """Which γ: those of channels that pruning can remove, or `all`."""
    sparse_align: int = 8
    """With `auto:SHARE`: leave multiples of so many channels in a layer, as `prune --align` does."""
    validation: float = 0.1
    """Share of the training images held out."""
    patience: int | None = None
    """Stop after so many epochs without a better validation accuracy, and keep the best epoch's weights."""
    ema: float = 0.0
    """Share that the average of the weights keeps of itself at each step; 0 keeps no average."""
    recalibration_images: int = 0
    """At the end, measure BN statistics anew on so many training images, without augmentation."""
    teacher: str | None = None
    """A checkpoint whose logits are learnt too; in a recipe also `trained`, the network before pruning."""
    distill: float = 0.5
    """Share of the teacher in the loss."""
    temperature: float = 4.0
    augmentation: str = "cifar"
    """A preset of `crop_pad` and `resized_crop`, for where these are None."""
    crop_pad: int | None = None
    resized_crop: float | None = None
    """Least share of the image that a random crop, resized to the whole, has; 0: none."""
    flip: bool = True
    flip_mode: str = "random"
    color_jitter: float = 0.0
    cutout: int = 0
    """Side in pixels of a square that is blanked in every image."""
    mixup: float = 0.0
    cutmix: float = 0.0
    """α of the Beta distribution that the shares of two images are drawn from; 0: none."""
    limit: int | None = None
    precision: str = "auto"
    compile: bool = False
    """One compiled program for forward and backward; on CUDA only."""
    seed: int = 0

    def __post_init__(self) -> None:
        for what, value, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
            ("sparsity step", self.sparsity_step, SPARSITY_STEPS),
            ("sparse layers", self.sparse_layers, SPARSE_LAYERS),
            ("flip mode", self.flip_mode, FLIP_MODES),
            ("augmentation", self.augmentation, AUGMENTATIONS),
        ):
            if value not in known:
                raise unknown(what, value, known)
        check_finite(self)
        self._check_sparsity()
        for name, (least, most) in _RANGES.items():
            check_range(name, getattr(self, name), least, most)
        if self.crop_pad and self.resized_crop:
            raise SlimdeployError("crop-pad and resized-crop are two ways to crop: set one of them to 0")
        for name, share in (
            ("momentum", self.momentum),
            ("label-smoothing", self.label_smoothing),
            ("ema", self.ema),
        ):
            if not 0 <= share < 1:
                raise SlimdeployError(f"{name} must be from 0 to below 1, not {share:g}")
        if not 0 < self.validation < 1:
            raise SlimdeployError(f"validation must be a share between 0 and 1, not {self.validation:g}")
        if not 0 < self.distill <= 1:
            raise SlimdeployError(f"distill must be a share above 0, up to 1, not {self.distill:g}")
        for name, rate in (("lr", self.lr), ("temperature", self.temperature)):
            if rate <= 0:
                raise SlimdeployError(f"{name} must be above 0, not {rate:g}")
            check_range(name, rate, 0, MAX_RATE)

    @property
    def augmentations(self) -> Augmentation:
        """What is done to the images; a crop that is given takes the place of the preset's other one."""
        preset = AUGMENTATIONS[self.augmentation]
        pad, share = self.crop_pad, self.resized_crop
        return Augmentation(
            pad=(0 if share else preset["crop_pad"]) if pad is None else pad,
            flip=self.flip,
            flip_mode=self.flip_mode,
            cutout=self.cutout,
            resized_crop=(0 if pad else preset["resized_crop"]) if share is None else share,
            color_jitter=self.color_jitter,
            mixup=self.mixup,
            cutmix=self.cutmix,
        )

    @property
    def sparsity_target(self) -> float | None:
        """The share of `auto:SHARE`; None where λ is fixed."""
        if isinstance(self.sparsity, str):
            return float(self.sparsity.removeprefix(AUTO))
        return None

    @property
    def is_sparse(self) -> bool:
        """Whether there is a penalty on γ."""
        return self.sparsity != 0

    def _check_sparsity(self) -> None:
        if not isinstance(self.sparsity, str):
            check_range("sparsity", self.sparsity, 0, MAX_RATE)
            return
        try:
            target = self.sparsity_target or 0.0
        except ValueError:
            target = 0.0
        if not self.sparsity.startswith(AUTO) or not 0 < target < 1:
            raise SlimdeployError(
                f"sparsity must be λ, or auto: and a share between 0 and 1 such as auto:0.9, "
                f"not {self.sparsity!r}"
            )
        for name, own, needed, why in (
            ("sparsity-step", self.sparsity_step, "proximal", "only it makes exact zeros"),
            ("sparse-layers", self.sparse_layers, "prunable", "it steers those that pruning can remove"),
            ("patience", self.patience, None, "the zeros are complete at the end of the run only"),
        ):
            if own != needed:
                advice = f"needs {name} {needed}" if needed else f"goes without {name}"
                raise SlimdeployError(f"sparsity {self.sparsity} {advice}: {why}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


ALL_OPTIONS = frozenset(f.name for f in fields(TrainOptions))
INHERITED = (
    "batch_size",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "validation",
    "limit",
    "augmentation",
    "crop_pad",
    "resized_crop",
    "flip",
    "flip_mode",
    "color_jitter",
    "cutout",
    "mixup",
    "cutmix",
)
"""Options of an earlier training that hold for a later one. The others are that training's own: how long, at
which rates, and with which aim.
"""
CROPS = frozenset({"augmentation", "crop_pad", "resized_crop"})


def inherited(given: Collection[str]) -> list[str]:
    """Those of INHERITED that a later training takes over where `given` are its own: who chooses a crop,
    chooses it whole.
    """
    own = CROPS.union(given) if CROPS & set(given) else given
    return [name for name in INHERITED if name not in own]


FINETUNE_LR = 1e-3
WEIGHTS_LR = 3e-3
"""Default rate of a training that starts from weights: a fresh network's would destroy them."""


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
    strength: float = 0.0
    """λ at the end of the epoch."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
