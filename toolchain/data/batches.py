"""Batches of a split that is on the device as uint8; they are augmented and normalised there, many images at
once. If the split stays in files, workers read, crop, flip and colour the images, and the device does the
rest.

Every random choice depends only on (seed, epoch), so a resumed run gets the same batches as an uninterrupted
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slimdeploy.toolchain.data.augmentation import Augmentation
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.data.mixing import draw_mixes
from slimdeploy.toolchain.data.streaming import Crop, Reader
from slimdeploy.toolchain.data.views import Views, cut_out, draw_views, jittered, resized_crops
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import GRAY_WEIGHTS, Preprocessing


class Normalise:
    """(N, H, W, 3) uint8 → (N, channels, H, W) float32 in channels-last layout, (x/255 − mean) ÷ std, in the
    network's order of channels: `runtime.preprocess.normalise` on the device.
    """

    def __init__(self, preprocessing: Preprocessing, device: str) -> None:
        mean = torch.tensor(preprocessing.mean, device=device)
        std = torch.tensor(preprocessing.std, device=device)
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._reverse = preprocessing.channels == "bgr"
        self._gray = preprocessing.channels == "gray"

    def __call__(self, images: Tensor) -> Tensor:
        if self._gray:
            images = _grayscale(images)
        scaled = torch.addcmul(self._shift, images.float(), self._scale)
        if self._reverse:
            scaled = scaled.flip(-1)
        # A permuted NHWC tensor is channels-last already: no copy is needed.
        return scaled.permute(0, 3, 1, 2)


def _grayscale(images: Tensor) -> Tensor:
    """`images.grayscale` on the device."""
    red, green, blue = (images[..., i].int() * weight for i, weight in enumerate(GRAY_WEIGHTS))
    return ((red + green + blue + (1 << 15)) >> 16)[..., None]


class TrainingBatches:
    """Shuffled, augmented batches; the remaining images at the end of an epoch are dropped.

    If `ranks` processes share each batch, process `rank` gets every `ranks`-th image.
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
        classes: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`classes` is for mixed labels. Raises SlimdeployError if the cutout covers a whole image."""
        if augmentation.cutout >= split.stored.shape[1]:
            raise SlimdeployError(
                f"`cutout` must be less than the image side of {split.stored.shape[1]} pixels, "
                f"not {augmentation.cutout}"
            )
        self._normalise = Normalise(preprocessing, device)
        self._augmentation, self._device, self._seed = augmentation, device, seed
        self._side = split.stored.shape[1]
        pad = 0 if augmentation.resized_crop else augmentation.pad
        self._classes = classes
        self._reader = None
        if isinstance(split.stored, FileImages):
            self._reader = Reader(split.stored, pad=pad, device=device)
        else:
            try:
                images = torch.from_numpy(np.ascontiguousarray(split.stored)).to(device)
            except torch.OutOfMemoryError as error:
                mib = split.stored.nbytes / 2**20
                raise SlimdeployError(
                    f"{mib:,.0f} MiB of images don't fit in GPU memory: use `stream` to read them from "
                    "their files"
                ) from error
            self._images = F.pad(images, (0, 0, pad, pad, pad, pad)) if pad else images
        self._labels = torch.from_numpy(split.labels).to(device)
        self.batch_size = min(batch_size, len(split))
        """Batch size over all processes."""
        self._rank, self._ranks = rank, ranks
        if self.batch_size < ranks:
            raise SlimdeployError(f"a batch of {self.batch_size} is too small for {ranks} processes")

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._labels) // self.batch_size

    @property
    def weight(self) -> float:
        """Weight of this process's mean in the mean over processes, such that the result is the mean over all
        images.
        """
        return len(range(self._rank, self.batch_size, self._ranks)) * self._ranks / self.batch_size

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of epoch `index`: images (B, C, H, W) float32 and labels: (B,) int64, or for mixed images
        (B, classes) float32.
        """
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        count, chosen = len(self._labels), self._augmentation
        order = torch.randperm(count, generator=generator)
        views = draw_views(
            chosen, count, self._side, generator=generator, draw_flips=partial(self._flips, index)
        )
        batches = order[: len(self) * self.batch_size].view(len(self), self.batch_size)
        own = batches[:, self._rank :: self._ranks]
        if not (chosen.mixup or chosen.cutmix):
            yield from self._batches(own, views)
            return
        mixes = draw_mixes(chosen.mixup, chosen.cutmix, len(self), self._side, seed=(self._seed, index))
        others = batches.roll(1, 1)[:, self._rank :: self._ranks]
        # With one process, the images mixed into a batch are from the same batch; with several, another
        # process may have them.
        alone = self._ranks == 1
        read = own if alone else torch.cat([own, others], 1)
        mine = slice(0, own.shape[1])
        theirs = torch.arange(own.shape[1]).roll(1) if alone else slice(own.shape[1], None)
        for mix, (images, labels) in zip(mixes, self._batches(read, views), strict=True):
            mixed = mix.images(images[mine], images[theirs])
            yield mixed, mix.labels(labels[mine], labels[theirs], self._classes)

    def _batches(self, batches: Tensor, views: Views) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) float32 and labels (B,) for each row of `batches`, which are image indices."""
        read = self._read if self._reader else self._gather
        centres = views.centres.to(self._device)
        for chosen, images in read(batches, views):
            images = self._normalise(images)
            if self._augmentation.cutout:
                images = cut_out(images, self._augmentation.cutout, *centres[:, chosen])
            yield images, self._labels[chosen]

    def _gather(self, batches: Tensor, views: Views) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices (B,) and augmented images (B, H, W, 3) uint8 of each batch, from memory."""
        views = views.to(self._device)
        side = torch.arange(self._side, device=self._device)
        for chosen in batches.to(self._device):
            boxes, flips = views.boxes[:, chosen], views.flips[chosen]
            if self._augmentation.resized_crop:
                images = resized_crops(self._images[chosen], boxes, flips)
            else:
                rows = boxes[0, :, None] + side
                columns = boxes[1, :, None] + torch.where(flips[:, None], side.flip(0), side)
                images = self._images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield chosen, jittered(images, views.colours[:, chosen]) if len(views.colours) else images

    def _read(self, batches: Tensor, views: Views) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, from files."""
        assert self._reader

        def crops(chosen: Tensor) -> list[Crop]:
            columns = (chosen, views.boxes[:, chosen].T, views.flips[chosen], views.colours[:, chosen].T)
            return [Crop(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

        for chosen, images in zip(batches, self._reader.read(map(crops, batches)), strict=True):
            yield chosen.to(self._device), images

    def _flips(self, index: int, generator: torch.Generator) -> Tensor:
        """(N,) bool: which images are mirrored in epoch `index`."""
        drawn = torch.rand(len(self._labels), generator=generator) < 0.5
        if self._augmentation.flip_mode == "alternating":
            first = torch.Generator().manual_seed(self._seed * 1_000_003 + 1_000_002)
            drawn = (torch.rand(len(self._labels), generator=first) < 0.5) ^ bool(index % 2)
        return drawn & self._augmentation.flip


def plain_batches(
    split: Split, preprocessing: Preprocessing, *, batch_size: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in order, without augmentation; the last batch may be smaller. Images and labels as in
    training.
    """
    normalise = Normalise(preprocessing, device)
    starts = range(0, len(split), batch_size)
    for start, images in zip(starts, _slices(split, starts, batch_size, device), strict=True):
        labels = torch.from_numpy(split.labels[start : start + batch_size])
        yield normalise(images), labels.to(device)


def _slices(split: Split, starts: range, batch_size: int, device: str) -> Iterator[Tensor]:
    """(B, H, W, 3) uint8 on the device: one batch from each start in `starts`."""
    if isinstance(split.stored, FileImages):
        ends = (min(start + batch_size, len(split)) for start in starts)
        batches = zip(starts, ends, strict=True)
        whole = (0, 0, split.stored.size, split.stored.size)
        crops = ([Crop(i, whole) for i in range(start, end)] for start, end in batches)
        yield from Reader(split.stored, pad=0, device=device).read(crops)
    else:
        for start in starts:
            images = np.ascontiguousarray(split.stored[start : start + batch_size])
            yield torch.from_numpy(images).to(device)
