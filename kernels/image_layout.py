"""The memory layout of a batch of camera or decoder images."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""Weights of red and blue in luma, by standard (ITU-R BT.601-7 and BT.709-6)."""
CHANNELS = {"rgb": 3, "bgr": 3, "nv12": 1}
"""Format → bytes of a pixel in its first plane."""


@dataclass(frozen=True)
class ImageLayout:
    """Memory layout of a batch of images of equal size. Strides are in bytes; None means no padding."""

    format: str
    """`rgb` or `bgr`, interleaved; or `nv12`: a plane of luma, followed by a plane of interleaved U and V
    with half the width and height.
    """
    width: int
    height: int
    pitch: int | None = None
    """Distance between rows, the same in both planes."""
    image_stride: int | None = None
    """Distance between images."""
    chroma_offset: int | None = None
    """NV12: distance from the luma plane to the chroma plane of an image."""
    standard: str = "bt709"
    """NV12: `bt709` (HD) or `bt601`."""
    full_range: bool = False
    """NV12: luma 0…255 instead of 16…235."""

    def __post_init__(self) -> None:
        if self.format not in CHANNELS:
            raise SlimdeployError(f"unknown image format {self.format!r}; known: {', '.join(CHANNELS)}")
        if self.standard not in LUMA:
            raise SlimdeployError(f"unknown colour standard {self.standard!r}; known: {', '.join(LUMA)}")
        if min(self.width, self.height) < 1:
            raise SlimdeployError(f"an image can't have {self.width}×{self.height} pixels")
        if self.row_pitch < self.row_bytes:
            raise SlimdeployError(f"pitch {self.pitch} is less than a row's {self.row_bytes} bytes")
        if self.chroma_at < self.row_pitch * (self.height - 1) + self.width and self.format == "nv12":
            raise SlimdeployError(f"chroma_offset {self.chroma_offset} lies within the luma plane")
        if self.stride < self.nbytes:
            raise SlimdeployError(
                f"image_stride {self.image_stride} is less than an image's {self.nbytes} bytes"
            )

    @property
    def chroma_size(self) -> tuple[int, int]:
        """Width and height of the chroma plane, in samples."""
        return (self.width + 1) // 2, (self.height + 1) // 2

    @property
    def row_bytes(self) -> int:
        """Number of bytes with samples in the longest row."""
        return 2 * self.chroma_size[0] if self.format == "nv12" else 3 * self.width

    @property
    def row_pitch(self) -> int:
        return self.row_bytes if self.pitch is None else self.pitch

    @property
    def chroma_at(self) -> int:
        return self.row_pitch * self.height if self.chroma_offset is None else self.chroma_offset

    @property
    def nbytes(self) -> int:
        """Number of bytes from the first to the last sample of an image, padding between rows included."""
        if self.format == "nv12":
            return self.chroma_at + self.row_pitch * (self.chroma_size[1] - 1) + self.row_bytes
        return self.row_pitch * (self.height - 1) + self.row_bytes

    @property
    def stride(self) -> int:
        if self.image_stride is not None:
            return self.image_stride
        rows = self.chroma_size[1] if self.format == "nv12" else self.height
        return (self.chroma_at if self.format == "nv12" else 0) + self.row_pitch * rows

    @property
    def sample_bytes(self) -> int:
        """Number of bytes with samples in an image."""
        if self.format == "nv12":
            return self.width * self.height + 2 * self.chroma_size[0] * self.chroma_size[1]
        return 3 * self.width * self.height
