"""Options of the preprocessing: a preset, or each part. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slimdeploy.toolchain.checks import MAX_IMAGE_SIZE, check_range
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.preprocessing import (
    CHANNELS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    Geometry,
    PerChannel,
    Preprocessing,
    check_statistics,
    per_channel,
)

if TYPE_CHECKING:
    from typing import Self  # Python 3.11


@dataclass(frozen=True)
class Preset:
    """The preprocessing of a family of published weights."""

    geometry: Geometry
    about: str
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD


PRESETS = {
    "imagenet": Preset(Geometry(224, 256), "torchvision's V1 weights"),
    "imagenet-v2": Preset(Geometry(224, 232), "torchvision's V2 weights"),
    "imagenet-bicubic": Preset(Geometry(224, 256, "bicubic"), "many of timm's weights"),
    "inception": Preset(Geometry(299, 342), "torchvision's Inception v3"),
    "squash-224": Preset(Geometry(224, (224, 224)), "Resize((224, 224)): ignores the aspect ratio"),
}
"""`--preprocessing` -> its values."""


def parse_resize(value: int | str) -> int | tuple[int, int]:
    """Parse `--resize`: `256` is the shorter side, `224x320` height and width."""
    parts = str(value).lower().replace("×", "x").split("x")
    if not all(part.isascii() and part.isdecimal() for part in parts) or len(parts) > 2:
        raise SlimdeployError(f"resize {value!r}: give the shorter side, such as 256, or HEIGHTxWIDTH")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


@dataclass(frozen=True, kw_only=True)
class PreprocessingOptions:
    """The chosen parts of the preprocessing.

    None leaves a part to the preset `preprocessing`, to the model, or to the data (size, mean and deviation
    of its images). One number as `mean` or `std` means gray images. Raises SlimdeployError for invalid
    values.
    """

    size: int | None = None
    preprocessing: str | None = None
    resize: int | str | None = None
    interpolation: str | None = None
    mean: PerChannel | float | None = None
    std: PerChannel | float | None = None
    channels: str | None = None

    def __post_init__(self) -> None:
        check_range("size", self.size, 1, MAX_IMAGE_SIZE)
        for name, known in (
            ("preprocessing", PRESETS),
            ("interpolation", INTERPOLATIONS),
            ("channels", CHANNELS),
        ):
            if (given := getattr(self, name)) not in (None, *known):
                raise unknown(f"`{name}`", str(given), known)
        for name in ("mean", "std"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, per_channel(given, name))
        chosen = self._own_statistics
        if self.channels is None and 1 in (len(values) for values in chosen if values):
            object.__setattr__(self, "channels", "gray")
        check_statistics(*chosen, self.channels or "rgb")
        self.geometry  # noqa: B018  (refuses what can't be)

    @property
    def geometry(self) -> Geometry | None:
        """The chosen geometry; None: the images' own size."""
        preset = self._preset
        resize = preset.geometry.resize if preset else None
        if self.resize is not None:
            resize = parse_resize(self.resize)
        size = self.size or (preset.geometry.size if preset else None)
        if size is None and resize is not None:
            size = min(resize) if isinstance(resize, tuple) else resize
        if size is None:
            if self.interpolation:
                raise SlimdeployError("an interpolation needs a size to resize to: pass `size` or `resize`")
            return None
        own = preset.geometry if preset else Geometry(size)
        return Geometry(size, resize, self.interpolation or own.interpolation)

    @property
    def image_channels(self) -> int:
        """The channels of the images, 3 unless gray is chosen."""
        return CHANNELS[self.channels or "rgb"]

    @property
    def statistics(self) -> tuple[PerChannel | None, PerChannel | None]:
        """The chosen mean and deviation. Those of the presets are for colour images only."""
        preset = None if self.channels == "gray" else self._preset
        mean, std = self._own_statistics
        return mean or (preset.mean if preset else None), std or (preset.std if preset else None)

    @property
    def _own_statistics(self) -> tuple[PerChannel | None, PerChannel | None]:
        mean = None if self.mean is None else per_channel(self.mean, "mean")
        std = None if self.std is None else per_channel(self.std, "std")
        return mean, std

    @property
    def _preset(self) -> Preset | None:
        return PRESETS[self.preprocessing] if self.preprocessing else None

    def geometry_or(self, size: int) -> Geometry:
        """The chosen geometry, else `size`×`size` pixels."""
        return self.geometry or Geometry(size)

    def completed(self, size: int, measure: Callable[[str], tuple[PerChannel, PerChannel]]) -> Preprocessing:
        """The preprocessing for images of `size`×`size` pixels; `measure` computes mean and deviation of the
        channels, `rgb`, `bgr` or `gray`, if they aren't chosen.
        """
        geometry, (mean, std) = self.geometry_or(size), self.statistics
        channels = self.channels or "rgb"
        if mean is None or std is None:
            own_mean, own_std = measure(channels)
            mean, std = mean or own_mean, std or own_std
        return Preprocessing(size, mean, std, geometry.resize, geometry.interpolation, channels)

    def for_network(self, name: str, image_channels: int) -> Self:
        """The same options for the network `name`, which takes images of `image_channels` channels: gray
        images for one. Raises SlimdeployError if others were chosen.
        """
        if self.image_channels == image_channels:
            return self
        if self.channels is None:
            return replace(self, channels="gray")
        told = " (one number as `mean` or `std` means gray)" if any(self._own_statistics) else ""
        raise SlimdeployError(
            f"{name} takes images with {image_channels} channel{'s'[: image_channels - 1]}; `channels` is "
            f"{self.channels}{told if self.channels == 'gray' else ''}"
        )

    def applied_to(self, default: Preprocessing) -> Preprocessing:
        """`default`, with the chosen parts replaced."""
        (mean, std), geometry = self.statistics, self.geometry or default.geometry
        return replace(
            default,
            size=geometry.size,
            mean=mean or default.mean,
            std=std or default.std,
            resize=geometry.resize,
            interpolation=geometry.interpolation,
            channels=self.channels or default.channels,
        )
