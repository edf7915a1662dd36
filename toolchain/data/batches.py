"""Batches of a split that lives on the device as uint8: cropped, flipped and normalised there, many images
at once.

Every random choice is a function of (seed, epoch) alone, so a resumed run sees the batches that an
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import Preprocessing


@dataclass(frozen=True)
class Augmentation:
    """Random crop out of the image with `pad` black pixels on each side, a horizontal flip of every other
    one, and a blank square.

    Digits and text must not be flipped. `flip_mode="alternating"` draws once which images are flipped in the
    first epoch; those are as they are in the second, and so on: all images are seen in both ways in any two
    epochs (Jordan, arXiv 2404.00498). `cutout` is the side of a square around a random pixel
    that takes the mean colour (DeVries & Taylor, arXiv 1708.04552); it may reach over the border.
    """

    pad: int = 4
    flip: bool = True
    flip_mode: str = "random"
    cutout: int = 0


class Normalise:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in channels-last layout, (x/255 − mean) ÷ std."""

    def __init__(self, preprocessing: Preprocessing, device: str) -> None:
        mean = torch.tensor(preprocessing.mean, device=device)
        std = torch.tensor(preprocessing.std, device=device)
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        # A permuted NHWC tensor *is* channels-last: nothing is copied for the layout.
        return torch.addcmul(self._shift, images.float(), self._scale).permute(0, 3, 1, 2)


class TrainingBatches:
    """Shuffled, augmented batches; the images left over at the end of an epoch are dropped."""

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        augmentation: Augmentation,
        device: str,
        seed: int,
    ) -> None:
        """Raises SlimdeployError where the cutout covers a whole image."""
        if augmentation.cutout >= split.images.shape[1]:
            raise SlimdeployError(
                f"cutout must be below the {split.images.shape[1]} pixels of an image's side, "
                f"not {augmentation.cutout}"
            )
        self._normalise = Normalise(preprocessing, device)
        self._augmentation, self._device, self._seed = augmentation, device, seed
        self._side = split.images.shape[1]
        pad = augmentation.pad
        images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
        self._images = F.pad(images, (0, 0, pad, pad, pad, pad)) if pad else images
        self._labels = torch.from_numpy(split.labels).to(device)
        self.batch_size = min(batch_size, len(split))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._labels) // self.batch_size

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of epoch `index`: images (B, 3, H, W) float32, labels (B,) int64."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        count, pad = len(self._labels), self._augmentation.pad
        order = torch.randperm(count, generator=generator).to(self._device)
        offsets = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(self._device)
        flips = self._flips(generator, index).to(self._device)
        side = torch.arange(self._side, device=self._device)
        centres = torch.randint(0, self._side, (2, count), generator=generator).to(self._device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            rows = offsets[0, chosen, None] + side
            columns = offsets[1, chosen, None] + torch.where(flips[chosen, None], side.flip(0), side)
            cropped = self._images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
            images = self._normalise(cropped)
            if self._augmentation.cutout:
                images = cut_out(images, self._augmentation.cutout, *centres[:, chosen])
            yield images, self._labels[chosen]

    def _flips(self, generator: torch.Generator, index: int) -> Tensor:
        """(N,) bool: which images are mirrored in epoch `index`."""
        drawn = torch.rand(len(self._labels), generator=generator) < 0.5
        if self._augmentation.flip_mode == "alternating":
            first = torch.Generator().manual_seed(self._seed * 1_000_003 + 1_000_002)
            drawn = (torch.rand(len(self._labels), generator=first) < 0.5) ^ bool(index % 2)
        return drawn & self._augmentation.flip


def cut_out(images: Tensor, size: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, C, H, W) with a square of `size` pixels at zero, which is the mean colour once normalised, around
    the pixel (rows[i], columns[i]) of image i. Of an even square the pixel is below and right of the middle.
    """
    pixels = torch.arange(images.shape[-1], device=images.device)
    first = -(size // 2)
    in_rows, in_columns = (
        (pixels >= (at + first)[:, None]) & (pixels < (at + first + size)[:, None]) for at in (rows, columns)
    )
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def plain_batches(
    split: Split, preprocessing: Preprocessing, *, batch_size: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in order, without augmentation, the last batch maybe smaller: images, labels as in
    training.
    """
    normalise = Normalise(preprocessing, device)
    for start in range(0, len(split), batch_size):
        images = torch.from_numpy(np.ascontiguousarray(split.images[start : start + batch_size]))
        labels = torch.from_numpy(split.labels[start : start + batch_size])
        yield normalise(images.to(device)), labels.to(device)
