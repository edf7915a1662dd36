"""Normalised images for work without augmentation: from a split, or from any iterable of batches, e.g. a
DataLoader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.dataset import Dataset, Split
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) float32, normalised, and labels (N,) int64."""
TEST_BATCH_SIZE = 250
ALL = 2**62


class Feed(Protocol):
    """Batches that can be iterated repeatedly."""

    @property
    def images(self) -> int:
        """Maximum number of images."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class SplitFeed:
    """A split in order, without augmentation, on `device`; the last batch may be smaller."""

    split: Split
    preprocessing: Preprocessing
    device: str
    batch_size: int = 128

    @property
    def images(self) -> int:
        return len(self.split)

    def __iter__(self) -> Iterator[Batch]:
        return plain_batches(self.split, self.preprocessing, batch_size=self.batch_size, device=self.device)


def feed_of_tests(dataset: Dataset, device: str) -> SplitFeed:
    """The test images of `dataset`."""
    return SplitFeed(dataset.test, dataset.preprocessing, device, TEST_BATCH_SIZE)


@dataclass(frozen=True)
class LoaderFeed:
    """The first `images` images of `source`, in its order, on `device`. `name` is the name of the parameter
    in errors.

    Raises SlimdeployError if `source` can be iterated only once, or yields anything but pairs of images
    (N, *shape) and labels (N,) below `classes`.
    """

    source: Iterable[Batch]
    device: str
    shape: tuple[int, int, int]
    """(channels, size, size) of an image."""
    classes: int
    images: int = ALL
    name: str = "data"

    def __post_init__(self) -> None:
        try:
            iterator = iter(self.source)
        except TypeError:
            raise SlimdeployError(
                f"`{self.name}` must be a list of batches or a DataLoader, not {type(self.source).__name__}"
            ) from None
        if iterator is self.source:
            raise SlimdeployError(
                f"`{self.name}` can be iterated only once: pass a list of batches or a DataLoader"
            )

    def __iter__(self) -> Iterator[Batch]:
        left = self.images
        for batch in self.source:
            images, labels = self._checked(batch)
            yield images[:left].to(self.device), labels[:left].to(self.device)
            left -= len(labels)
            if left <= 0:
                return
        if left == self.images:
            raise SlimdeployError(f"`{self.name}` contains no images")

    def count_batches(self) -> int:
        """Number of batches in one pass. A source without a length is iterated once to count them."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except TypeError:  # raised by the DataLoader of an IterableDataset too
            return sum(1 for _ in self.source)

    def _checked(self, batch: object) -> Batch:
        if isinstance(batch, tuple | list) and len(batch) == 2:
            images, labels = batch
            if isinstance(images, Tensor) and isinstance(labels, Tensor):
                floats = images.is_floating_point(), labels.is_floating_point()
                shaped = (images.dim(), labels.dim()) == (4, 1) and len(images) == len(labels)
                if shaped and floats == (True, False):
                    return self._usable(images.detach().to(torch.float32)), self._known(labels.long())
                given = f"{tuple(images.shape)} {images.dtype} and {tuple(labels.shape)} {labels.dtype}"
                raise SlimdeployError(
                    f"`{self.name}` yields {given}; pairs of images (N, C, H, W) float32 and labels (N,) "
                    "int64 are needed"
                )
        raise SlimdeployError(
            f"`{self.name}` yields {type(batch).__name__}s that are not pairs of images (N, C, H, W) and "
            "labels (N,), both tensors"
        )

    def _usable(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            given, taken = (" × ".join(map(str, shape)) for shape in (images.shape[1:], self.shape))
            raise SlimdeployError(f"`{self.name}` yields images of {given}, but the network takes {taken}")
        if not len(images):
            raise SlimdeployError(f"`{self.name}` yields a batch without images")
        if not torch.isfinite(images).all():
            raise SlimdeployError(f"`{self.name}` yields images with NaN or infinite values")
        return images

    def _known(self, labels: Tensor) -> Tensor:
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            wrong = labels[(labels < 0) | (labels >= self.classes)][0]
            raise SlimdeployError(
                f"`{self.name}` contains the label {wrong}, but the network has {self.classes} classes"
            )
        return labels
