"""Options of the augmentation of training images. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """Random crop, horizontal flip of half of the images, colour jitter, cutout, and mixing.

    `pad`: the image is padded by this many black pixels on each side, then cropped to its own size.
    `resized_crop`: instead, a rectangle of at least this share of the area and an aspect ratio of 3:4 to 4:3
    is cropped and resized (RandomResizedCrop); 0 disables it.

    Digits and text must not be flipped. `flip_mode="alternating"` chooses once which images are flipped in
    the first epoch; the others are flipped in the second, and so on, so that any two epochs show every image
    in both ways (Jordan, arXiv 2404.00498).

    `color_jitter` j: brightness, contrast and saturation are each multiplied by a random factor in 1 − j … 1
    + j. `cutout` is the side of a square around a random pixel that is filled with the mean colour (DeVries &
    Taylor, arXiv 1708.04552); it may extend over the border. `mixup` and `cutmix` are the α of
    data/mixing.py.
    """

    pad: int = 4
    flip: bool = True
    flip_mode: str = "random"
    cutout: int = 0
    resized_crop: float = 0.0
    color_jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
