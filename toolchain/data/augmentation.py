"""What is done to training images, as plain data. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """A random crop, a horizontal flip of every other image, changed colours, a blank square, and mixing.

    `pad`: the crop is as large as the image, out of it with that many black pixels on each side.
    `resized_crop`: in place of that a rectangle of at least this share of the area and a ratio of 3:4 to 4:3,
    resized to the whole (RandomResizedCrop); 0 is none.

    Digits and text must not be flipped. `flip_mode="alternating"` draws once which images are flipped in the
    first epoch; those are as they are in the second, and so on: all images are seen in both ways in any two
    epochs (Jordan, arXiv 2404.00498).

    `color_jitter` j: brightness, contrast and saturation are each multiplied by something in 1 − j … 1 + j.
    `cutout` is the side of a square around a random pixel that takes the mean colour (DeVries & Taylor,
    arXiv 1708.04552); it may reach over the border. `mixup` and `cutmix` are the α of data/mixing.py.
    """

    pad: int = 4
    flip: bool = True
    flip_mode: str = "random"
    cutout: int = 0
    resized_crop: float = 0.0
    color_jitter: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
