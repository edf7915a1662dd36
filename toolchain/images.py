"""Convert images of any size and format to the network's pixels, in training, evaluation and on the device:
bit-identical to torchvision's transforms on PIL images. No torch.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import GRAY_WEIGHTS, Geometry

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000", "TGA", "HEIF")
"""Allowed PIL formats: some others start programs to read a file (EPS), and many are rarely tested. HEIF can
be read if pillow-heif is installed.
"""

HEIF_ENDINGS = (".heic", ".heif", ".hif")

_ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation -> PIL's operation that makes the image upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip


@functools.cache
def formats() -> tuple[str, ...]:
    """The FORMATS that this machine can read."""
    from PIL import Image

    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def endings() -> frozenset[str]:
    """File extensions of images, in lower case."""
    from PIL import Image

    known = formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in known)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was added to an archive by macOS."""
    return name.startswith(".") or name == "__MACOSX"


def open_image(source: Path | str | IO[bytes], allowed: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image file; only its header is read. Raises PIL's errors."""
    from PIL import Image

    return Image.open(source, formats=[name for name in formats() if name in allowed])


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, 8 bits per channel, rotated according to its EXIF orientation.

    Of 16 bits the upper 8 are used. Raises SlimdeployError for 32-bit pixels, whose range is unknown.
    """
    from PIL import Image

    image.load()
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        rgb = _upper_byte(image).convert("RGB")
    elif mode in ("I", "F"):
        raise SlimdeployError("32-bit pixels, whose range is unknown: save it with 8 or 16 bits per channel")
    else:
        rgb = image.convert("RGB")
    turn = _UPRIGHT.get(_orientation(image))
    return rgb.transpose(Image.Transpose[turn]) if turn else rgb


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """An RGB image of any size as (size, size, 3) uint8: resized and center-cropped."""
    from PIL import Image

    wanted = geometry.resized(*image.size)
    if image.size != wanted:
        image = image.resize(wanted, Image.Resampling[geometry.interpolation.upper()])
    left, top = geometry.crop(*image.size)
    # PIL fills areas outside the image with black.
    return np.asarray(image.crop((left, top, left + geometry.size, top + geometry.size)))


def fit_pixels(images: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(N, H, W, 3) uint8 → (N, size, size, 3) uint8, each like `fit`."""
    height, width = images.shape[1:3]
    if (width, height) == geometry.resized(width, height) == (geometry.size, geometry.size):
        return images  # no PIL needed
    from PIL import Image

    return np.stack([fit(Image.fromarray(image), geometry) for image in images])


def _upper_byte(image: Image.Image) -> Image.Image:
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none or it can't be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF may raise any error; the pixels are valid
        return 1


def grayscale(images: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 in red, green, blue → (…, 1) uint8, as PIL converts."""
    weighted = images @ np.array(GRAY_WEIGHTS, np.uint32)
    return ((weighted + (1 << 15)) >> 16).astype(np.uint8)[..., None]
