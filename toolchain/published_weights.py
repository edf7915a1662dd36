"""Weights published by torchvision, identified by the hash in their URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.preprocessing_options import PRESETS
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.torchvision import import_torchvision

TRANSFORMING, TRANSFORM = ("googlenet", "inception_v3"), "transform_input"
"""Networks that were trained with another normalisation, and convert the images in their forward pass if
built with this argument.
"""


@dataclass(frozen=True)
class PublishedWeights:
    """torchvision's description of a weights file. `name` is e.g. ResNet50_Weights.IMAGENET1K_V2."""

    name: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments with which torchvision builds the network for them."""

    def __str__(self) -> str:
        geometry, statistics = self.preprocessing.geometry, (self.preprocessing.mean, self.preprocessing.std)
        presets = [n for n, p in PRESETS.items() if (p.geometry, (p.mean, p.std)) == (geometry, statistics)]
        return f"{self.name} (--preprocessing {presets[0]})" if presets else self.name


def tell_of_transform(name: str, arguments: Mapping[str, Any]) -> None:
    """Log that weights for the network `name` may need an argument: a state dict doesn't contain it."""
    if name.removeprefix("torchvision:") in TRANSFORMING and TRANSFORM not in arguments:
        log(
            f"{name} is built without {TRANSFORM}: if the weights were fine-tuned from torchvision's, add "
            f"`arg` {TRANSFORM}=true"
        )


def published_weights(model: str, sha256: str) -> PublishedWeights | None:
    """torchvision's weights for its classifier `model` with this hash; None if there are none."""
    models = import_torchvision().models
    if model not in models.list_models(module=models):
        return None
    for weights in models.get_model_weights(model):
        # Like torch.hub's check: the file is NAME-DIGITS.pth, with the first digits of its SHA-256.
        digits = weights.url.removesuffix(".pth").rpartition("-")[2]
        if len(digits) >= 8 and sha256.startswith(digits):
            return _published(model, weights)
    return None


def _published(model: str, weights: Enum) -> PublishedWeights:
    described: Any = weights
    transforms = described.transforms()
    preprocessing = Preprocessing(
        size=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
    )
    arguments = {TRANSFORM: True} if model in TRANSFORMING else {}
    return PublishedWeights(str(weights), preprocessing, tuple(described.meta["categories"]), arguments)
