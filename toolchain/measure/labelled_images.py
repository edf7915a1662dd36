"""Test images for measuring accuracy, at the size that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.data.dataset import DataOptions, balanced_subset, load_dataset
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import Preprocessing


@dataclass(frozen=True)
class Images:
    """`images` (N, H, W, 3) uint8, `labels` (N,), and the names of the classes that the labels count."""

    images: np.ndarray | FileImages
    labels: np.ndarray
    class_names: tuple[str, ...]


LoadImages = Callable[[Preprocessing], Images]
"""Loads test images as a model sees them."""


def dataset_images(data: DataOptions, limit: int | None = None) -> LoadImages:
    """Loads the test split of `data` as a model sees it, a class-balanced `limit` of it."""

    def load(wanted: Preprocessing) -> Images:
        size = wanted.size
        if data.size not in (None, size):
            raise SlimdeployError(f"`size` {data.size}, but the model takes {size}×{size}: leave `size` out")
        dataset = load_dataset(data.fed_to(wanted))
        test = balanced_subset(dataset.test, limit)
        return Images(test.stored, test.labels, dataset.class_names)

    return load


def images_for(
    preprocessing: Preprocessing, class_names: Sequence[str], label: str, load: LoadImages
) -> Images:
    """Test images that fit the model `label`; raises SlimdeployError where the data has other classes."""
    found = load(preprocessing)
    if tuple(found.class_names) != tuple(class_names):
        raise SlimdeployError(
            f"{label} knows the classes {_few(class_names)}, the data has {_few(found.class_names)}: "
            "measure with the data that it was trained for"
        )
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" … ({len(names)})" if len(names) > 4 else "")
