"""Random choices of the augmentation for all images of an epoch, and their application to batches on the
device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slimdeploy.toolchain.data.augmentation import Augmentation

TRIES, RATIOS = 10, (3 / 4, 4 / 3)
"""Number of attempts for a random rectangle, as in torchvision's RandomResizedCrop; then the whole image."""
GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue for grey values, as in torchvision."""


@dataclass(frozen=True)
class Views:
    """Random choices for N images: `boxes` (4, N) int64: top, left, height and width of the crop in pixels of
    the padded image; `flips` (N,) bool; `colours` (3, N), the factors of brightness, contrast and saturation,
    or (0, N); `centres` (2, N) int64 of the cutout square.
    """

    boxes: Tensor
    flips: Tensor
    colours: Tensor
    centres: Tensor

    def to(self, device: str) -> Views:
        drawn = (self.boxes, self.flips, self.colours, self.centres)
        return Views(*(tensor.to(device) for tensor in drawn))


def draw_views(
    augmentation: Augmentation,
    count: int,
    side: int,
    *,
    generator: torch.Generator,
    draw_flips: Callable[[torch.Generator], Tensor],
) -> Views:
    """Random choices for `count` images of `side`×`side` pixels."""
    pad = augmentation.pad
    offsets = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    flips = draw_flips(generator)
    boxes = torch.cat([offsets, torch.full((2, count), side)])
    centres = torch.randint(0, side, (2, count), generator=generator)
    if augmentation.resized_crop:
        boxes = _rectangles(augmentation.resized_crop, count, side, generator)
    colours = torch.empty(0, count)
    if jitter := augmentation.color_jitter:
        colours = 1 + jitter * (2 * torch.rand(3, count, generator=generator) - 1)
    return Views(boxes, flips, colours, centres)


def _rectangles(least: float, count: int, side: int, generator: torch.Generator) -> Tensor:
    """(4, count): the first of TRIES random boxes that is inside the image, else the whole image."""
    area = side**2 * (least + (1 - least) * torch.rand(TRIES, count, generator=generator))
    low, high = torch.tensor(RATIOS).log()
    ratio = (low + (high - low) * torch.rand(TRIES, count, generator=generator)).exp()
    height, width = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    inside = (height <= side) & (width <= side) & (height >= 1) & (width >= 1)
    first, numbers = inside.int().argmax(0), torch.arange(count)
    found = inside.any(0)
    height = torch.where(found, height[first, numbers], side).long()
    width = torch.where(found, width[first, numbers], side).long()
    top, left = (
        (torch.rand(count, generator=generator) * (side - extent + 1)).long() for extent in (height, width)
    )
    return torch.stack([top, left, height, width])


def resized_crops(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """The `boxes` (4, N) of images (N, S, S, 3) uint8, each resized to S×S (bilinear), and flipped by
    `flips`.
    """
    side = images.shape[1]
    top, left, height, width = boxes
    number = torch.arange(len(images), device=images.device)[:, None]
    low, high, part = _samples(top, height, side)
    rows = _between(images[number, low], images[number, high], part[:, :, None, None])
    low, high, part = (torch.where(flips[:, None], x.flip(1), x) for x in _samples(left, width, side))
    every = torch.arange(side, device=images.device)[:, None]
    left_column, right_column = (rows[number[:, :, None], every, at[:, None, :]] for at in (low, high))
    mixed = left_column + (right_column - left_column) * part[:, None, :, None]
    return mixed.round_().to(torch.uint8)


def _samples(start: Tensor, extent: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, side) each: the two source pixels of each of `side` new pixels, and the weight of the second."""
    at = (torch.arange(side, device=start.device) + 0.5) * (extent[:, None] / side) - 0.5
    at = torch.minimum(at.clamp_(min=0), extent[:, None] - 1)
    low = at.floor().long()
    high = torch.minimum(low + 1, extent[:, None] - 1)
    return start[:, None] + low, start[:, None] + high, at - low


def _between(one: Tensor, other: Tensor, part: Tensor) -> Tensor:
    return one + (other.float() - one) * part


def jittered(images: Tensor, colours: Tensor) -> Tensor:
    """Images (N, S, S, 3) uint8 with brightness, contrast and saturation multiplied by `colours` (3, N), in
    this order, as in torchvision's adjust_brightness, adjust_contrast and adjust_saturation.
    """
    brightness, contrast, saturation = colours[:, :, None, None, None]
    pixels = (images * brightness).clamp_(max=255).floor_()
    means = _grey(pixels).mean((1, 2, 3), keepdim=True)
    pixels = _blended(pixels, means, contrast)
    return _blended(pixels, _grey(pixels), saturation).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.split(1, -1)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).floor_()


def _blended(pixels: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor + others * (1 - factor)).clamp_(0, 255).floor_()


def cut_out(images: Tensor, size: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, C, H, W) with a square of `size` pixels set to zero (the mean colour after normalisation) around
    pixel (rows[i], columns[i]) of image i. If the size is even, the pixel is right below the centre.
    """
    pixels = torch.arange(images.shape[-1], device=images.device)
    first = -(size // 2)
    in_rows, in_columns = (
        (pixels >= (at + first)[:, None]) & (pixels < (at + first + size)[:, None]) for at in (rows, columns)
    )
    blank = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return images * ~blank  # unlike masked_fill, this keeps the memory layout
