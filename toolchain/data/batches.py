"""Batches of a split that lives on the device as uint8: cropped, flipped and normalised there, many images
at once. Of one that stays in its files, workers read, crop and flip the images, the device normalises them.

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
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.data.streaming import Crop, Reader
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import Preprocessing


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
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in channels-last layout, (x/255 − mean) ÷ std, in the
    network's order of channels: `runtime.preprocess.normalise` on the device.
    """

    def __init__(self, preprocessing: Preprocessing, device: str) -> None:
        mean = torch.tensor(preprocessing.mean, device=device)
        std = torch.tensor(preprocessing.std, device=device)
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._reverse = preprocessing.channels == "bgr"

    def __call__(self, images: Tensor) -> Tensor:
        scaled = torch.addcmul(self._shift, images.float(), self._scale)
        if self._reverse:
            scaled = scaled.flip(-1)
        # A permuted NHWC tensor *is* channels-last: nothing is copied for the layout.
        return scaled.permute(0, 3, 1, 2)


class TrainingBatches:
    """Shuffled, augmented batches; the images left over at the end of an epoch are dropped.

    Where `ranks` processes share each batch, these are the images of process `rank`: every `ranks`-th one.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        augmentation: Augmentation,
        device: str,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Raises SlimdeployError where the cutout covers a whole image."""
        if augmentation.cutout >= split.stored.shape[1]:
            raise SlimdeployError(
                f"cutout must be below the {split.stored.shape[1]} pixels of an image's side, "
                f"not {augmentation.cutout}"
            )
        self._normalise = Normalise(preprocessing, device)
        self._augmentation, self._device, self._seed = augmentation, device, seed
        self._side = split.stored.shape[1]
        pad = augmentation.pad
        self._reader = None
        if isinstance(split.stored, FileImages):
            self._reader = Reader(split.stored, pad=pad, device=device)
        else:
            try:
                images = torch.from_numpy(np.ascontiguousarray(split.stored)).to(device)
            except torch.OutOfMemoryError as error:
                mib = split.stored.nbytes / 2**20
                raise SlimdeployError(
                    f"{mib:,.0f} MiB of images don't fit on the GPU: --stream leaves them in their files"
                ) from error
            self._images = F.pad(images, (0, 0, pad, pad, pad, pad)) if pad else images
        self._labels = torch.from_numpy(split.labels).to(device)
        self.batch_size = min(batch_size, len(split))
        """Images in a batch, those of other processes included."""
        self._rank, self._ranks = rank, ranks
        if self.batch_size < ranks:
            raise SlimdeployError(f"a batch of {self.batch_size} is too small for {ranks} processes")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._labels) // self.batch_size

    @property
    def weight(self) -> float:
        """What a mean over this process's images counts, for the mean over processes to be that over all."""
        return len(range(self._rank, self.batch_size, self._ranks)) * self._ranks / self.batch_size

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of epoch `index`: images (B, 3, H, W) float32, labels (B,) int64."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        count, pad = len(self._labels), self._augmentation.pad
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
        flips = self._flips(generator, index)
        centres = torch.randint(0, self._side, (2, count), generator=generator).to(self._device)
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        batches = [order[start + self._rank : start + self.batch_size : self._ranks] for start in starts]
        read = self._read if self._reader else self._gather
        for chosen, images in read(batches, offsets, flips):
            images = self._normalise(images)
            if self._augmentation.cutout:
                images = cut_out(images, self._augmentation.cutout, *centres[:, chosen])
            yield images, self._labels[chosen]

    def _gather(
        self, batches: list[Tensor], offsets: Tensor, flips: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers (B,) and cropped and flipped images (B, H, W, 3) uint8 of each batch, from memory."""
        offsets, flips = offsets.to(self._device), flips.to(self._device)
        side = torch.arange(self._side, device=self._device)
        for chosen in torch.stack(batches).to(self._device):
            rows = offsets[0, chosen, None] + side
            columns = offsets[1, chosen, None] + torch.where(flips[chosen, None], side.flip(0), side)
            yield chosen, self._images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _read(self, batches: list[Tensor], offsets: Tensor, flips: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same from files."""
        assert self._reader
        tops, lefts = offsets

        def crops(chosen: Tensor) -> list[Crop]:
            columns = (chosen, tops[chosen], lefts[chosen], flips[chosen])
            return [Crop(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

        for chosen, images in zip(batches, self._reader.read(map(crops, batches)), strict=True):
            yield chosen.to(self._device), images

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
    blank = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return images * ~blank  # which keeps the layout, as masked_fill doesn't


def plain_batches(
    split: Split, preprocessing: Preprocessing, *, batch_size: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in order, without augmentation, the last batch maybe smaller: images, labels as in
    training.
    """
    normalise = Normalise(preprocessing, device)
    starts = range(0, len(split), batch_size)
    for start, images in zip(starts, _slices(split, starts, batch_size, device), strict=True):
        labels = torch.from_numpy(split.labels[start : start + batch_size])
        yield normalise(images), labels.to(device)


def _slices(split: Split, starts: range, batch_size: int, device: str) -> Iterator[Tensor]:
    """(B, H, W, 3) uint8 on the device, from each of `starts` on."""
    if isinstance(split.stored, FileImages):
        ends = (min(start + batch_size, len(split)) for start in starts)
        batches = zip(starts, ends, strict=True)
        crops = ([Crop(i, 0, 0, False) for i in range(start, end)] for start, end in batches)
        yield from Reader(split.stored, pad=0, device=device).read(crops)
    else:
        for start in starts:
            images = np.ascontiguousarray(split.stored[start : start + batch_size])
            yield torch.from_numpy(images).to(device)
