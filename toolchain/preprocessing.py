"""Preprocessing as plain data: it belongs to the network, from training to the device. The options for it are
in preprocessing_options.py.

The definition is that of torchvision on PIL images (`Resize`, `CenterCrop`, `Normalize`);
`runtime/preprocess.py` implements it. No torch and no numpy here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from slimdeploy.toolchain.checks import MAX_IMAGE_SIZE
from slimdeploy.toolchain.errors import SlimdeployError, unknown

INTERPOLATIONS = ("bilinear", "bicubic")
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
"""The channels of a network's images, by their order -> how many they are."""
GRAY_WEIGHTS = (19595, 38470, 7471)
"""Gray is the sum of red, green and blue with these weights ÷ 65536 (ITU-R BT.601), rounded: as in PIL and in
torchvision's `Grayscale`.
"""

PerChannel = tuple[float, ...]
"""One number for each channel."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Geometry:
    """Geometry of the preprocessing: the image is resized, then its centre is cropped.

    `resize` N makes the shorter side N pixels and keeps the aspect ratio; (height, width) ignores it; None
    means `size`. `size` is the side of the cropped square; a smaller resized image is padded with black.
    Downscaling is antialiased, as in PIL. Raises SlimdeployError for invalid sizes and interpolations.
    """

    size: int
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("`interpolation`", str(self.interpolation), INTERPOLATIONS)
        if self.resize == self.size:
            object.__setattr__(self, "resize", None)  # one form, so that equal ones compare equal
        resize = self.size if self.resize is None else self.resize
        sides = [("size", self.size)]
        sides += [("resize", side) for side in (resize if isinstance(resize, tuple) else (resize,))]
        for name, side in sides:
            if not isinstance(side, Integral) or not 1 <= int(side) <= MAX_IMAGE_SIZE:
                raise SlimdeployError(f"`{name}` must be 1 to {MAX_IMAGE_SIZE} pixels, not {side!r}")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image of `width`×`height` pixels after resizing, rounded as in torchvision,
        which truncates the longer side.
        """
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short = self.resize or self.size
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short

    def crop(self, width: int, height: int) -> tuple[int, int]:
        """Left and top of the crop in a resized image, negative if black is added there. torchvision first
        pads a side that is too small.
        """
        return self._offset(width), self._offset(height)

    def _offset(self, side: int) -> int:
        if side < self.size:
            return -((self.size - side) // 2)
        return round((side - self.size) / 2)

    @property
    def key(self) -> str:
        """Its name in file names."""
        to = self.resize or self.size
        resized = "x".join(map(str, to)) if isinstance(to, tuple) else str(to)
        return f"{self.size}-{resized}-{self.interpolation}"

    def __str__(self) -> str:
        to = self.resize or self.size
        resized = f"{to[0]}×{to[1]}" if isinstance(to, tuple) else f"the shorter side {to}"
        return f"{resized}, {self.interpolation}, centre {self.size}×{self.size}"


@dataclass(frozen=True)
class Preprocessing:
    """The pixels selected by `geometry`, scaled to 0…1, then (x − mean) ÷ std per channel. `channels`: red,
    green and blue (`rgb`), the reverse (`bgr`), or one channel (`gray`). Mean and std are always in the order
    red, green, blue.

    Raises SlimdeployError like `Geometry`, and for an impossible mean or standard deviation.
    """

    size: int
    mean: PerChannel
    std: PerChannel
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    channels: str = "rgb"

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise unknown("`channels`", str(self.channels), CHANNELS)
        object.__setattr__(self, "resize", self.geometry.resize)
        for name in ("mean", "std"):
            object.__setattr__(self, name, per_channel(getattr(self, name), name))
        check_statistics(self.mean, self.std, self.channels)

    @property
    def image_channels(self) -> int:
        """Number of channels of an image as the network takes it."""
        return CHANNELS[self.channels]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, size, size) of an image as the network takes it."""
        return self.image_channels, self.size, self.size

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.size, self.resize, self.interpolation)

    def __str__(self) -> str:
        colours = {"rgb": "", "bgr": ", BGR", "gray": ", gray"}[self.channels]
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.geometry}{colours}; mean {mean}, std {std}"

    def to_json(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "resize": self.size if self.resize is None else self.resize,
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
            "channels": self.channels,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Preprocessing:
        """Read the output of `to_json`, or an older form with only size, mean and std.

        Raises SlimdeployError for invalid values, and KeyError, TypeError or ValueError for an invalid form.
        """
        resize = document.get("resize")
        return cls(
            int(document["size"]),
            tuple(map(float, document["mean"])),
            tuple(map(float, document["std"])),
            tuple(map(int, resize)) if isinstance(resize, list) else resize and int(resize),  # type: ignore[arg-type]
            str(document.get("interpolation", "bilinear")),
            str(document.get("channels", "rgb")),
        )


def default_preprocessing(size: int, channels: int) -> Preprocessing:
    """The preprocessing of a network that doesn't tell its own: ImageNet's mean and standard deviation for
    colour images; pixels in 0…1 for gray ones, which have no common values.
    """
    if channels == 1:
        return Preprocessing(size, (0.0,), (1.0,), channels="gray")
    return Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD)


def per_channel(values: Any, name: str) -> PerChannel:
    """`values`, the mean or std called `name`: three numbers or one. Raises SlimdeployError for others."""
    try:
        found = tuple(map(float, (values,) if isinstance(values, Real) else values))
    except (TypeError, ValueError):
        found = ()
    if len(found) not in CHANNELS.values():
        raise SlimdeployError(f"`{name}` must be three numbers, or one for gray images, not {values!r}")
    return found


def check_statistics(mean: PerChannel | None, std: PerChannel | None, channels: str) -> None:
    """Raise SlimdeployError for a mean or deviation that is impossible for `channels` with pixels in 0…1."""
    for name, values in (("mean", mean), ("std", std)):
        if values and len(values) != CHANNELS[channels]:
            wanted = "one number" if channels == "gray" else "three numbers"
            raise SlimdeployError(f"`{name}` must be {wanted} for {channels} images, not {values}")
        for value in values or ():
            if math.isfinite(value) and abs(value) <= 1 and (name == "mean" or value > 0):
                continue
            hint = f": divide by 255, {value / 255:.4g}" if math.isfinite(value) and value > 1 else ""
            raise SlimdeployError(
                f"{name} {value:g} is not possible for pixels in 0…1{hint}"
                if name == "mean"
                else f"std must be above 0 and at most 1 (of pixels in 0…1), not {value:g}{hint}"
            )
