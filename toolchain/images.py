"""Images of any size and format to the pixels that a network sees, in training, evaluation and on the device:
bit for bit torchvision's transforms on PIL images. No torch.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Geometry

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000", "TGA", "HEIF")
"""PIL's names; of its others, some start programs to read a file (EPS), and many are seldom tested. HEIF is
read where pillow-heif is installed.
"""

HEIF_ENDINGS = (".heic", ".heif", ".hif")

_ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation -> what makes the image upright, in PIL's words.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this machine reads."""
    from PIL import Image

    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def endings() -> frozenset[str]:
    """Endings of the file names that are taken for images, in lower case."""
    from PIL import Image

    known = formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in known)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def open_image(source: Path | str | IO[bytes], allowed: tuple[str, ...] = FORMATS) -> Image.Image:
    """PIL's image of the file, of which only the header has been read. Raises what PIL raises."""
    from PIL import Image

    return Image.open(source, formats=[name for name in formats() if name in allowed])


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, 8 bits a channel, turned as its EXIF orientation says.

    Of 16 bits the upper 8 count. Raises SlimdeployError for pixels of 32 bits, whose range nothing tells.
    """
    from PIL import Image

    image.load()
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        rgb = _upper_byte(image).convert("RGB")
    elif mode in ("I", "F"):
        raise SlimdeployError("32-bit pixels, whose range isn't known: save it with 8 or 16 bits a channel")
    else:
        rgb = image.convert("RGB")
    turn = _UPRIGHT.get(_orientation(image))
    return rgb.transpose(Image.Transpose[turn]) if turn else rgb


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """An RGB image of any size as (size, size, 3) uint8: resized, and the centre cut out."""
    from PIL import Image

    wanted = geometry.resized(*image.size)
    if image.size != wanted:
        image = image.resize(wanted, Image.Resampling[geometry.interpolation.upper()])
    left, top = geometry.crop(*image.size)
    # PIL fills what lies outside of the image with black.
    return np.asarray(image.crop((left, top, left + geometry.size, top + geometry.size)))


def fit_pixels(images: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(N, H, W, 3) uint8 → (N, size, size, 3) uint8, each as `fit`."""
    height, width = images.shape[1:3]
    if (width, height) == geometry.resized(width, height) == (geometry.size, geometry.size):
        return images  # which takes no PIL
    from PIL import Image

    return np.stack([fit(Image.fromarray(image), geometry) for image in images])


def _upper_byte(image: Image.Image) -> Image.Image:
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or it can't be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises whatever its parser runs into; the pixels are fine
        return 1
