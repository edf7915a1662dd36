"""Test images for measuring accuracy, at the input size of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.data.dataset import DataOptions, balanced_subset, load_dataset
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import check_class_names
from slimdeploy.toolchain.preprocessing import Preprocessing


@dataclass(frozen=True)
class Images:
    """`images` (N, H, W, 3) uint8, `labels` (N,), and the class names."""

    images: np.ndarray | FileImages
    labels: np.ndarray
    class_names: tuple[str, ...]


LoadImages = Callable[[Preprocessing], Images]
"""Loads test images with the preprocessing of a model."""


def dataset_images(data: DataOptions, limit: int | None = None) -> LoadImages:
    """Loads a class-balanced `limit` of the test split of `data` with the preprocessing of a model."""

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
    """Test images for the model `label`; raises SlimdeployError if the data has other classes."""
    found = load(preprocessing)
    check_class_names("the data", found.class_names, label, class_names)
    return found
