"""What a training run can be told, with defaults that work, and what it reports back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from typing import Any

from slimdeploy.toolchain.checks import MAX_BATCH, MAX_IMAGE_SIZE, MAX_RATE, MAX_SEED
from slimdeploy.toolchain.data.augmentation import Augmentation
from slimdeploy.toolchain.declared import Form, check_declared, option
from slimdeploy.toolchain.errors import SlimdeployError
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


def _parse_strength(text: str) -> float | str:
    """λ as a number; any other text as it is, for TrainOptions to judge."""
    try:
        return float(text)
    except ValueError:
        return text


STRENGTH = Form(_parse_strength, "λ, or auto: and a share such as auto:0.9", "FLOAT|auto:SHARE")


@dataclass(frozen=True)
class TrainOptions:
    """Options of one run. Raises SlimdeployError when built with values that make no sense."""

    epochs: int = option(20, "Passes over the training images.", least=0, most=10**6, heading="Optimiser")
    batch_size: int = option(128, "Images in a step; BN needs two.", least=2, most=MAX_BATCH)
    lr: float = option(0.1, "Peak learning rate.", most=MAX_RATE)
    schedule: str = option("one-cycle", "How the learning rate moves.", choices=SCHEDULES)
    step_epochs: int = option(30, "With the schedule step: epochs between two divisions by 10.", least=1)
    momentum: float = option(0.9, "Nesterov momentum.")
    weight_decay: float = option(5e-4, "On weights; never on γ, β and biases.", least=0, most=MAX_RATE)
    label_smoothing: float = option(0.0, "Share of the target spread over all classes.")
    sparsity: float | str = option(
        0.0,
        "λ of the L1 penalty on γ; auto:0.9 steers it until nine tenths are exactly zero.",
        form=STRENGTH,
        least=0,
        most=MAX_RATE,
        heading="Sparsity",
    )
    sparsity_step: str = option(
        "proximal", "proximal gives exact zeros; subgradient is the reference's form.", choices=SPARSITY_STEPS
    )
    sparse_layers: str = option(
        "prunable",
        "Which γ the penalty acts on: those of channels that pruning can remove, or all.",
        choices=SPARSE_LAYERS,
    )
    sparse_align: int = option(
        8,
        "With a sparsity: leave multiples of so many channels in a layer, as pruning does.",
        least=1,
        most=MAX_IMAGE_SIZE,
    )
    shrink: bool = option(
        True, "Remove channels that stay at zero while training; without it the original widths stay."
    )
    validation: float = option(
        0.1, "Share of the training images held out.", heading="Validation and averaging"
    )
    patience: int | None = option(
        None,
        "Stop after so many epochs without a better validation accuracy, and keep the best epoch's weights.",
        least=1,
    )
    ema: float = option(0.0, "Decay of the weights' moving average, e.g. 0.999; 0 disables.")
    recalibration_images: int = option(
        0, "Measure BN statistics anew at the end, on so many training images without augmentation.", least=0
    )
    teacher: str | None = option(
        None, "Teacher checkpoint for distillation.", path=True, heading="Distillation"
    )
    distill: float = option(0.5, "Share of the teacher in the loss.")
    temperature: float = option(
        4.0, "What the logits are divided by before they are compared with the teacher's.", most=MAX_RATE
    )
    augmentation: str = option(
        "cifar",
        "Preset of the random crop: cifar pads 4 pixels, for small images; imagenet has resized_crop 0.08.",
        choices=AUGMENTATIONS,
        heading="Augmentation",
    )
    crop_pad: int | None = option(
        None,
        "Random crop out of the image with so many black pixels around.",
        least=0,
        most=256,
        unset="by the augmentation",
    )
    resized_crop: float | None = option(
        None,
        "Random rectangle of at least this share of the image, resized; 0 disables.",
        least=0,
        most=1,
        unset="by the augmentation",
    )
    flip: bool = option(True, "Flip half of the images; not for digits or text.")
    flip_mode: str = option(
        "random", "alternating flips each image in every second epoch.", choices=FLIP_MODES
    )
    color_jitter: float = option(
        0.0, "Change brightness, contrast and saturation by up to this share, e.g. 0.4.", least=0, most=1
    )
    cutout: int = option(0, "Blank a square of so many pixels in every image.", least=0, most=MAX_IMAGE_SIZE)
    mixup: float = option(
        0.0, "α of mixup, e.g. 0.2: blend pairs of images and their labels; 0 disables.", least=0, most=100
    )
    cutmix: float = option(
        0.0,
        "α of CutMix, e.g. 1: paste part of another image; with mixup, either at random.",
        least=0,
        most=100,
    )
    limit: int | None = option(None, "Use a class-balanced subset of so many training images.", least=1)
    precision: str = option(
        "auto", "bf16 and fp16 are mixed; auto takes bf16 where the hardware has it.", choices=PRECISIONS
    )
    compile: bool = option(False, "Compile the network's passes (torch.compile, CUDA graphs); on CUDA only.")
    seed: int = option(0, "Seed of every random choice.", least=0, most=MAX_SEED)

    def __post_init__(self) -> None:
        check_declared(self)
        self._check_sparsity()
        if self.crop_pad and self.resized_crop:
            raise SlimdeployError("`crop_pad` and `resized_crop` are two ways to crop: set one of them to 0")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise SlimdeployError(f"`{name}` must be from 0 to below 1, not {share:g}")
        if not 0 < self.validation < 1:
            raise SlimdeployError(f"`validation` must be a share between 0 and 1, not {self.validation:g}")
        if not 0 < self.distill <= 1:
            raise SlimdeployError(f"`distill` must be a share above 0, up to 1, not {self.distill:g}")
        for name in ("lr", "temperature"):
            if (rate := getattr(self, name)) <= 0:
                raise SlimdeployError(f"`{name}` must be above 0, not {rate:g}")

    @property
    def augmentations(self) -> Augmentation:
        """What is done to the images; a crop that is given takes the place of the preset's other one."""
        preset = AUGMENTATIONS[self.augmentation]
        pad, share = self.crop_pad, self.resized_crop
        return Augmentation(
            pad=(0 if share else int(preset["crop_pad"])) if pad is None else pad,
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
            return
        try:
            target = self.sparsity_target or 0.0
        except ValueError:
            target = 0.0
        if not self.sparsity.startswith(AUTO) or not 0 < target < 1:
            raise SlimdeployError(
                f"`sparsity` must be λ, or auto: and a share between 0 and 1 such as auto:0.9, "
                f"not {self.sparsity!r}"
            )
        for name, own, needed, why in (
            ("sparsity_step", self.sparsity_step, "proximal", "only it makes exact zeros"),
            ("sparse_layers", self.sparse_layers, "prunable", "it steers those that pruning can remove"),
            ("patience", self.patience, None, "the zeros are complete at the end of the run only"),
        ):
            if own != needed:
                advice = f"needs `{name}` {needed}" if needed else f"goes without `{name}`"
                raise SlimdeployError(f"`sparsity` {self.sparsity} {advice}: {why}")

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


SPARSITY = ("sparsity", "sparsity_step", "sparse_layers", "sparse_align", "shrink")
"""Options of the penalty, which fine-tuning does without."""
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
    """Share of the penalised γ that are exactly zero, or were until their channels were taken out."""
    images_per_second: float
    strength: float = 0.0
    """λ at the end of the epoch."""
    macs: int = 0
    """For one image, at the end of the epoch; 0 where it wasn't recorded."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
