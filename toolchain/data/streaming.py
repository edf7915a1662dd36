"""Batches of images that are read during training by the workers of a DataLoader and augmented by
torchvision's v2 transforms.

The random choices are made by the caller, so that the batches equal those of images in memory bit for bit;
resized crops and colour jitter differ by rounding. Workers return batches through a pipe, as numpy arrays:
tensors would be returned through /dev/shm, which has 64 MB in a container; a worker dies when it is full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.launch import cpu_count, launch
from slimdeploy.toolchain.torchvision import import_torchvision

AHEAD = 4
"""Number of batches that each worker prefetches."""


@dataclass(frozen=True)
class Crop:
    """Image `index`: crop `box` (top, left, height, width), with black pixels around the image, and resize it
    to the image size; then flip it, and apply `colours` (the factors of brightness, contrast and saturation).
    """

    index: int
    box: tuple[int, int, int, int]
    flip: bool = False
    colours: tuple[float, ...] = ()


class Reader:
    """Reads batches of `images`, with `pad` black pixels around. The worker processes live as long as this
    object.
    """

    def __init__(self, images: FileImages, *, pad: int, device: str) -> None:
        self._batches = _Batches()
        self._device = device
        self._loader = DataLoader(
            _Cropped(images, pad),
            batch_sampler=self._batches,
            num_workers=_workers(),
            collate_fn=_collate,
            persistent_workers=True,
            prefetch_factor=AHEAD,
            generator=torch.Generator(),  # does not change torch's global state
        )

    def read(self, batches: Iterable[list[Crop]]) -> Iterator[Tensor]:
        """Each batch as (B, H, W, 3) uint8 on the device. Raises SlimdeployError for an unreadable file."""
        self._batches.now = batches
        for images in self._loader:
            if isinstance(images, SlimdeployError):
                raise images
            yield torch.from_numpy(images).to(self._device)


class _Batches:
    """The sequence of batches for the loader; it is evaluated in every epoch."""

    now: Iterable[list[Crop]] = ()

    def __iter__(self) -> Iterator[list[Crop]]:
        return iter(self.now)


class _Cropped(Dataset[Tensor | SlimdeployError]):
    def __init__(self, images: FileImages, pad: int) -> None:
        import_torchvision()
        from torchvision.transforms import v2

        self._transforms = v2.functional
        self._images, self._pad = images, pad

    def __getitem__(self, crop: Crop) -> Tensor | SlimdeployError:  # type: ignore[override]
        """(H, W, 3) uint8. An error is returned instead of raised, to keep it free of the worker's
        traceback.
        """
        try:
            image = torch.tensor(self._images[crop.index]).permute(2, 0, 1)
        except SlimdeployError as error:
            return error
        f, side = self._transforms, self._images.size
        if self._pad:
            image = f.pad(image, [self._pad] * 4)
        if crop.box[2:] == (side, side):
            image = f.crop(image, *crop.box)
        else:
            image = f.resized_crop(image, *crop.box, [side, side], antialias=True)
        if crop.flip:
            image = f.horizontal_flip(image)
        adjusts = (f.adjust_brightness, f.adjust_contrast, f.adjust_saturation)
        for adjust, factor in zip(adjusts, crop.colours, strict=False):
            image = adjust(image, factor)
        return image.permute(1, 2, 0)


def _collate(images: list[Tensor | SlimdeployError]) -> np.ndarray | SlimdeployError:
    tensors = []
    for image in images:
        if isinstance(image, SlimdeployError):
            return image
        tensors.append(image)
    return torch.stack(tensors).numpy()


def _workers() -> int:
    """One worker per processor available to this process, shared with the other processes of a run."""
    return max(1, cpu_count() // launch().local_size)
