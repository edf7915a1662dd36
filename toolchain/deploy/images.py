"""Untrusted images on a device: files, uploads, raw frames."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.images import (
    FORMATS,
    endings,
    fit,
    fit_pixels,
    formats,
    is_hidden,
    open_image,
    upright_rgb,
)
from slimdeploy.toolchain.preprocessing import Geometry

PIXEL_FORMATS = {"rgb": 3, "bgr": 3, "gray": 1}
"""Pixel format of raw frames -> bytes per pixel."""


@dataclass(frozen=True)
class ImageLimits:
    """Limits for decoding: a small file can contain a huge image."""

    bytes: int = 256 << 20
    pixels: int = 64_000_000
    aspect: float = 64.0
    """Maximum aspect ratio: the shorter side is scaled to the network's size."""
    formats: tuple[str, ...] = FORMATS


@dataclass(frozen=True)
class FrameFormat:
    """Raw frames of width × height pixels, row by row, without padding. Raises SlimdeployError for invalid
    sizes.
    """

    width: int
    height: int
    pixels: str = "rgb"

    def __post_init__(self) -> None:
        if self.pixels not in PIXEL_FORMATS:
            raise SlimdeployError(f"pixels {self.pixels!r}; known: {', '.join(PIXEL_FORMATS)}")
        if not (1 <= self.width <= 16384 and 1 <= self.height <= 16384):
            raise SlimdeployError(
                f"frames of {self.width}×{self.height} pixels: 1 to 16384 a side can be read"
            )

    @classmethod
    def parse(cls, text: str, pixels: str) -> FrameFormat:
        """From `640x480`."""
        width, _, height = text.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise SlimdeployError(f"`frames` {text}: write it as WIDTHxHEIGHT, e.g. 640x480")
        return cls(int(width), int(height), pixels)

    @property
    def bytes(self) -> int:
        return self.width * self.height * PIXEL_FORMATS[self.pixels]


def decode_image(content: bytes, name: str, *, geometry: Geometry, limits: ImageLimits) -> np.ndarray:
    """An encoded image as (size, size, 3) uint8, decoded, resized and cropped as in training.

    Raises SlimdeployError if it is not an image, or exceeds `limits`.
    """
    from PIL import UnidentifiedImageError

    if len(content) > limits.bytes:
        raise SlimdeployError(f"{name}: {len(content)} bytes; at most {limits.bytes} are read")
    try:
        with open_image(io.BytesIO(content), limits.formats) as image:
            _check_size(*image.size, name, limits)  # only the header has been read
            return fit(upright_rgb(image), geometry)
    except UnidentifiedImageError:
        raise SlimdeployError(f"{name}: not an image, or in an unsupported format") from None
    except SlimdeployError as error:
        raise SlimdeployError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
    except Exception as error:  # PIL raises many types of errors for damaged files
        reason = " ".join(str(error).split())[:100]
        raise SlimdeployError(f"{name}: not a readable image ({type(error).__name__}: {reason})") from error


def read_frames(stream: BinaryIO, frame: FrameFormat, *, geometry: Geometry) -> Iterator[np.ndarray]:
    """Raw frames from a stream until it ends, each as (size, size, 3) uint8; raises SlimdeployError if it
    ends within a frame.
    """
    number = 0
    while content := _read_exactly(stream, frame.bytes):
        if len(content) != frame.bytes:
            raise SlimdeployError(
                f"frame {number}: {len(content)} bytes, not {frame.bytes}: check its size and pixel format"
            )
        number += 1
        pixels = np.frombuffer(content, np.uint8).reshape(frame.height, frame.width, -1)
        if frame.pixels == "bgr":
            pixels = pixels[..., ::-1]
        pixels = np.broadcast_to(pixels, (frame.height, frame.width, 3))
        yield fit_pixels(np.ascontiguousarray(pixels)[None], geometry)[0]


def list_images(paths: tuple[str, ...]) -> list[Path]:
    """The named files, and all image files in the named folders, in order."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings() and _is_shown(p, path))
        if not inside:
            raise SlimdeployError(f"{path} contains no images ({', '.join(formats())})")
        found += inside
    return found


def _is_shown(path: Path, root: Path) -> bool:
    return path.is_file() and not any(is_hidden(part) for part in path.relative_to(root).parts)


def _check_size(width: int, height: int, name: str, limits: ImageLimits) -> None:
    if width * height > limits.pixels:
        raise SlimdeployError(f"{name}: {width}×{height} pixels; at most {limits.pixels} are decoded")
    if max(width, height) > limits.aspect * min(width, height):
        raise SlimdeployError(
            f"{name}: {width}×{height} pixels is too narrow (at most 1 to {limits.aspect:g})"
        )


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    """`count` bytes, or fewer at the end of the stream; a pipe returns what is available."""
    parts = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
