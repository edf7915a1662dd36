"""Options of training and their defaults; the record of an epoch."""

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
"""`--augmentation` -> the random crop: for images of about 32 pixels; for 224, as in torchvision's training.
"""
AUTO = "auto:"


def _parse_strength(text: str) -> float | str:
    """λ as a number; any other text unchanged, which TrainOptions checks."""
    try:
        return float(text)
    except ValueError:
        return text


STRENGTH = Form(_parse_strength, "a number (λ) or auto:SHARE, e.g. auto:0.9", "FLOAT|auto:SHARE")


@dataclass(frozen=True)
class TrainOptions:
    """Options of one training run. Raises SlimdeployError for values out of range."""

    epochs: int = option(20, "Passes over the training images.", least=0, most=10**6, heading="Optimiser")
    batch_size: int = option(128, "Batch size; BN needs at least 2.", least=2, most=MAX_BATCH)
    lr: float = option(0.1, "Peak learning rate.", most=MAX_RATE)
    schedule: str = option("one-cycle", "Learning rate schedule.", choices=SCHEDULES)
    step_epochs: int = option(30, "Epochs between two divisions by 10.", least=1, needs="schedule step")
    momentum: float = option(0.9, "Nesterov momentum.")
    weight_decay: float = option(
        5e-4, "Weight decay, not applied to γ, β and biases.", least=0, most=MAX_RATE
    )
    label_smoothing: float = option(0.0, "Share of the target spread over all classes.")
    sparsity: float | str = option(
        0.0,
        "λ of the L1 penalty on γ; auto:0.9 adjusts λ so that 90 % of the γ become zero.",
        form=STRENGTH,
        least=0,
        most=MAX_RATE,
        heading="Sparsity",
    )
    sparsity_step: str = option(
        "proximal",
        "proximal gives exact zeros; subgradient is the original method.",
        choices=SPARSITY_STEPS,
        needs="sparsity",
    )
    sparse_layers: str = option(
        "prunable",
        "Penalised γ: only those of channels that pruning can remove, or all.",
        choices=SPARSE_LAYERS,
        needs="sparsity",
    )
    sparse_align: int = option(
        8,
        "Keep a multiple of N channels in each layer, like prune --align.",
        least=1,
        most=MAX_IMAGE_SIZE,
        needs="sparsity",
    )
    shrink: bool = option(
        True,
        "Remove channels that stay at zero during training, or keep the original widths.",
        needs="sparsity",
    )
    validation: float = option(
        0.1, "Share of the training images held out.", heading="Validation and averaging"
    )
    patience: int | None = option(
        None,
        "Stop after N epochs without a better validation accuracy; keep the weights of the best epoch.",
        least=1,
    )
    ema: float = option(0.0, "Decay of the weights' moving average, e.g. 0.999; 0 disables.")
    recalibration_images: int = option(
        0, "Recalibrate BN statistics at the end on N training images without augmentation.", least=0
    )
    teacher: str | None = option(
        None, "Teacher checkpoint for distillation.", path=True, heading="Distillation"
    )
    distill: float = option(0.5, "Weight of the teacher's loss, above 0 and at most 1.", needs="teacher")
    temperature: float = option(
        4.0, "Softmax temperature of the distillation loss.", least=1e-3, most=MAX_RATE, needs="teacher"
    )
    teacher_cache: str | None = option(
        None,
        "Keep the teacher's logits in this file; later trainings on the same images, e.g. of another pruned "
        "network with the same --seed, read them instead of running the teacher.",
        path=True,
        needs="teacher",
    )
    augmentation: str = option(
        "cifar",
        "Preset of the random crop: cifar pads 4 pixels, for small images; imagenet has resized_crop 0.08.",
        choices=AUGMENTATIONS,
        heading="Augmentation",
    )
    crop_pad: int | None = option(
        None,
        "Pad the image by N black pixels on each side, then crop at random.",
        least=0,
        most=256,
        unset="by --augmentation",
    )
    resized_crop: float | None = option(
        None,
        "Crop a random rectangle of at least this share of the area and resize it; 0 disables.",
        least=0,
        most=1,
        unset="by --augmentation",
    )
    flip: bool = option(True, "Flip half of the images horizontally; not suitable for digits or text.")
    flip_mode: str = option(
        "random", "random, or alternating: flip each image in every second epoch.", choices=FLIP_MODES
    )
    color_jitter: float = option(
        0.0, "Change brightness, contrast and saturation by up to this share, e.g. 0.4.", least=0, most=1
    )
    cutout: int = option(
        0, "Side of a square that is blanked in each image, in pixels.", least=0, most=MAX_IMAGE_SIZE
    )
    mixup: float = option(
        0.0, "α of mixup, e.g. 0.2: mix pairs of images and their labels; 0 disables.", least=0, most=100
    )
    cutmix: float = option(
        0.0,
        "α of CutMix, e.g. 1: paste a part of another image; with --mixup, one of both at random.",
        least=0,
        most=100,
    )
    limit: int | None = option(None, "Use a class-balanced subset of N training images.", least=1)
    precision: str = option(
        "auto",
        "bf16 and fp16 are mixed precision; auto: bf16 if the hardware supports it.",
        choices=PRECISIONS,
    )
    compile: bool = option(False, "Use torch.compile with CUDA graphs; on CUDA only.")
    seed: int = option(0, "Random seed.", least=0, most=MAX_SEED)

    def __post_init__(self) -> None:
        check_declared(self)
        self._check_sparsity()
        if self.crop_pad and self.resized_crop:
            raise SlimdeployError("`crop_pad` and `resized_crop` exclude each other: set one of them to 0")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise SlimdeployError(f"`{name}` must be from 0 to below 1, not {share:g}")
        if not 0 < self.validation < 1:
            raise SlimdeployError(f"`validation` must be a share between 0 and 1, not {self.validation:g}")
        if not 0 < self.distill <= 1:
            raise SlimdeployError(f"`distill` must be a share above 0, up to 1, not {self.distill:g}")
        if self.lr <= 0:
            raise SlimdeployError(f"`lr` must be above 0, not {self.lr:g}")
        if self.recalibration_images == 1:
            raise SlimdeployError("`recalibration_images` must be 0 or at least 2, not 1")

    @property
    def augmentations(self) -> Augmentation:
        """The augmentation. A crop that is given replaces the preset's other crop."""
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
        """The share of `auto:SHARE`; None if λ is fixed."""
        if isinstance(self.sparsity, str):
            return float(self.sparsity.removeprefix(AUTO))
        return None

    @property
    def is_sparse(self) -> bool:
        """Whether γ is penalised."""
        return self.sparsity != 0

    @property
    def sparse_residual(self) -> str:
        """The mode of `channel_groups` with the channels that training can remove."""
        return "couple" if self.sparse_layers == "all" else "keep"

    def _check_sparsity(self) -> None:
        if not isinstance(self.sparsity, str):
            return
        try:
            target = self.sparsity_target or 0.0
        except ValueError:
            target = 0.0
        if not self.sparsity.startswith(AUTO) or not 0 < target < 1:
            raise SlimdeployError(
                f"`sparsity` must be a number (λ) or auto:SHARE with a share between 0 and 1, e.g. auto:0.9, "
                f"not {self.sparsity!r}"
            )
        for name, own, needed, why in (
            ("sparsity_step", self.sparsity_step, "proximal", "only it makes exact zeros"),
            (
                "sparse_layers",
                self.sparse_layers,
                "prunable",
                "λ is adjusted by the γ that pruning can remove",
            ),
            ("patience", self.patience, None, "γ reach zero only at the end of the run"),
        ):
            if own != needed:
                advice = f"needs `{name}` {needed}" if needed else f"cannot be used with `{name}`"
                raise SlimdeployError(f"`sparsity` {self.sparsity} {advice}: {why}")

    def to_json(self) -> dict[str, Any]:
        """The options that determine the result."""
        return {name: value for name, value in asdict(self).items() if name != "teacher_cache"}


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
"""Options of an earlier training that later trainings inherit. The others (duration, rates, target) hold only
for the training itself.
"""
CROPS = frozenset({"augmentation", "crop_pad", "resized_crop"})


def inherited(given: Collection[str]) -> list[str]:
    """The options in INHERITED that a later training takes over if `given` are its own. If one option of the
    crop is given, none of the crop is inherited.
    """
    own = CROPS.union(given) if CROPS & set(given) else given
    return [name for name in INHERITED if name not in own]


OF_DATASETS = tuple(name for name in INHERITED if name not in ("momentum", "weight_decay", "label_smoothing"))
"""Options for making batches of a Dataset; they don't apply to batches made by the caller."""
SPARSITY = ("sparsity", "sparsity_step", "sparse_layers", "sparse_align", "shrink")
"""Options of the penalty, which do not apply to fine-tuning."""
FINETUNE_LR = 1e-3
WEIGHTS_LR = 3e-3
"""Default learning rate when training starts from weights: that of a new network would destroy them."""


@dataclass(frozen=True)
class EpochRecord:
    """One line of the history."""

    epoch: int
    lr: float
    train_loss: float
    """Mean over the images of the epoch."""
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    """None without validation images, which is possible only with batches made by the caller."""
    zero_share: float
    """Share of the penalised γ that are exactly zero, removed channels included."""
    images_per_second: float
    strength: float = 0.0
    """λ at the end of the epoch."""
    macs: int = 0
    """MACs of one image at the end of the epoch; 0 if not recorded."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
