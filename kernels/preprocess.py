"""Convert camera or decoder images on the device to network input, in one pass: preprocess.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from slimdeploy.kernels import compile, resize
from slimdeploy.kernels.image_layout import LUMA, ImageLayout
from slimdeploy.toolchain.checks import MAX_BATCH, check_range
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import GRAY_WEIGHTS, Preprocessing
from slimdeploy.toolchain.runtime.device import Buffer, Device, Stream

# Constants with which preprocess.cu is compiled.
THREADS = 256
BYTES = 16
SPAN = THREADS * BYTES

BLOCKS = 1024
"""Target number of blocks per launch: about four waves on the largest GPUs, which run two blocks on each of
their 132 multiprocessors.
"""
MAX_BAND = 16
"""Maximum number of output rows per block. The rows that two bands share are then 1/16 of the rows read."""

PLANE = np.dtype(
    [("data", "<u8"), ("image_stride", "<i8"), ("rows", "<u8"), ("columns", "<u8"), ("row_step", "<f4"),
     ("column_step", "<f4"), ("peak", "<f4"), ("pitch", "<i4"), ("row_bytes", "<i4"), ("aligned", "<i4"),
     ("reuse", "<i4")],
    align=True,
)  # fmt: skip
OUTPUT = np.dtype(
    [("data", "<u8"), ("width", "<i4"), ("height", "<i4"), ("tile", "<i4"), ("band", "<i4"),
     ("scale", "<f4", 3), ("shift", "<f4", 3), ("gray", "<f4", 3)],
    align=True,
)  # fmt: skip
HWC = np.dtype([("image", PLANE), ("out", OUTPUT), ("bgr", "<i4")], align=True)
NV12 = np.dtype([("luma", PLANE), ("chroma", PLANE), ("out", OUTPUT), ("to_rgb", "<f4", (3, 4))], align=True)


class Preprocess:
    """The kernel for one image layout and one network input: it resizes, crops the centre and normalises.

    `queue` neither allocates nor waits, so it can be captured in a CUDA graph.
    """

    def __init__(
        self, device: Device, layout: ImageLayout, preprocessing: Preprocessing, *, precision: str = "fp32"
    ) -> None:
        """`precision` is that of the network's input, `fp32` or `fp16`.

        Raises SlimdeployError for preprocessing that only the host supports: bicubic interpolation, and
        padding of images that are smaller than the input.
        """
        if precision not in ("fp32", "fp16"):
            raise SlimdeployError(f"network input is fp32 or fp16, not {precision!r}")
        self._device, self.layout, self._size = device, layout, preprocessing.size
        self._geometry = preprocessing.geometry
        self._check_geometry()
        self._item_bytes = 4 if precision == "fp32" else 2
        self._channels = preprocessing.image_channels
        source, gray = "nv12" if layout.format == "nv12" else "hwc", "_gray" if self._channels == 1 else ""
        self._kernel = compile.kernel(device, "preprocess", f"preprocess_{source}{gray}_{precision}")
        self._tables: list[Buffer] = []
        self._parameters = self._prepare(preprocessing)

    def _check_geometry(self) -> None:
        geometry, size = self._geometry, self._size
        if geometry.interpolation != "bilinear":
            raise SlimdeployError(
                f"the CUDA kernel resizes bilinear, not {geometry.interpolation}: use the host"
            )
        width, height = self._resized
        if min(width, height) < size:
            raise SlimdeployError(
                f"the CUDA kernel adds no black around an image: {width}×{height} is less than {size}×{size}"
            )

    @property
    def _resized(self) -> tuple[int, int]:
        """Width and height of the resized image, before the crop."""
        return self._geometry.resized(self.layout.width, self.layout.height)

    def _prepare(self, preprocessing: Preprocessing) -> np.ndarray:
        layout, size = self.layout, self._size
        reverse = preprocessing.channels == "bgr"
        if layout.format == "nv12":
            parameters = np.zeros((), NV12)
            width, height = layout.chroma_size
            luma_columns = self._plane(parameters["luma"], 1, layout.width, layout.height)
            chroma_columns = self._plane(
                parameters["chroma"], 2, width, height, extent=(layout.width / 2, layout.height / 2)
            )
            tile = choose_tile([(luma_columns, 1), (chroma_columns, 2)], SPAN // 2)
            to_rgb = yuv_to_rgb(layout.standard, full_range=layout.full_range)
            parameters["to_rgb"] = to_rgb[::-1] if reverse else to_rgb
        else:
            parameters = np.zeros((), HWC)
            columns = self._plane(parameters["image"], 3, layout.width, layout.height)
            tile = choose_tile([(columns, 3)], SPAN)
            parameters["bgr"] = (layout.format == "bgr") != reverse
        out = parameters["out"]
        out["width"], out["height"], out["tile"] = size, size, tile
        mean, std = (np.array(v[::-1] if reverse else v) for v in (preprocessing.mean, preprocessing.std))
        out["scale"][: self._channels], out["shift"][: self._channels] = 1 / (255 * std), -mean / std
        weights = np.array(GRAY_WEIGHTS) / sum(GRAY_WEIGHTS)
        out["gray"] = weights[::-1] if layout.format == "bgr" else weights
        return parameters

    def _plane(
        self,
        plane: np.ndarray,
        channels: int,
        width: int,
        height: int,
        extent: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """Fill in the parameters of a plane and upload its tables; returns the table of the columns."""
        (new_width, new_height), (wide, high) = self._resized, extent or (width, height)
        left, top = self._geometry.crop(new_width, new_height)
        columns = resize.taps(width, new_width, extent=wide)[left : left + self._size]
        rows = resize.taps(height, new_height, extent=high)[top : top + self._size]
        plane["peak"] = peak = choose_peak(high / new_height)
        rows["norm"] /= peak
        plane["columns"], plane["rows"] = self._table(columns), self._table(rows)
        plane["column_step"] = resize.step(wide, new_width)
        plane["row_step"] = resize.step(high, new_height)
        plane["pitch"], plane["image_stride"] = self.layout.row_pitch, self.layout.stride
        plane["row_bytes"] = width * channels
        plane["reuse"] = high >= new_height
        return columns

    def _table(self, table: np.ndarray) -> int:
        buffer, stream = self._device.allocate(table.nbytes), self._device.stream()
        self._tables.append(buffer)
        self._device.upload(buffer, table, stream)
        stream.synchronize()
        return buffer.address

    def queue(self, images: Buffer, output: Buffer, batch: int, stream: Stream) -> None:
        """Queue the kernel: `images` holds `batch` images of the layout, `output` gets (batch,
        channels, size, size).

        Raises SlimdeployError if a buffer is too small, or `batch` is not from 1 to MAX_BATCH.
        """
        check_range("batch", batch, 1, MAX_BATCH)
        needed = self.layout.stride * (batch - 1) + self.layout.nbytes
        if images.nbytes < needed or output.nbytes < self.output_bytes(batch):
            raise SlimdeployError(
                f"{batch} images need {needed} bytes in and {self.output_bytes(batch)} out; "
                f"the buffers have {images.nbytes} and {output.nbytes}"
            )
        p = self._parameters
        if self.layout.format == "nv12":
            self._locate(p["luma"], images.address)
            self._locate(p["chroma"], images.address + self.layout.chroma_at)
        else:
            self._locate(p["image"], images.address)
        tiles = -(-self._size // int(p["out"]["tile"]))
        band = choose_band(self._size, tiles * batch)
        p["out"]["data"], p["out"]["band"] = output.address, band
        self._device.launch(self._kernel, (tiles, -(-self._size // band), batch), (THREADS, 1, 1), p, stream)

    def _locate(self, plane: np.ndarray, address: int) -> None:
        plane["data"] = address
        plane["aligned"] = not any(n % BYTES for n in (address, self.layout.row_pitch, self.layout.stride))

    def output_bytes(self, batch: int) -> int:
        return batch * self._channels * self._size**2 * self._item_bytes

    def bytes_moved(self, batch: int) -> int:
        """Minimum traffic: samples read once, results written once."""
        return batch * self.layout.sample_bytes + self.output_bytes(batch)

    def close(self) -> None:
        """Free the tables. May be called twice."""
        while self._tables:
            self._tables.pop().free()


def choose_tile(planes: list[tuple[np.ndarray, int]], span: int) -> int:
    """Width of the tiles in output columns: a block filters one tile at a time. The image is divided into the
    smallest number of equal tiles that need at most `span` source bytes of each plane.

    `planes` are pairs (taps of the columns, bytes of a pixel). If the window of a single column exceeds
    `span`, the result is 1, and the kernel reads that window in several parts.
    """
    size = len(planes[0][0])
    for tiles in range(1, size + 1):
        tile = -(-size // tiles)
        if all(_widest(columns, channels, tile) <= span for columns, channels in planes):
            return tile
    return 1


def choose_peak(scale: float) -> int:
    """Largest integer weight of a row: 16 bits, or less if the weighted sum of the bytes in a window could
    exceed 32 bits. `scale` is the number of source rows per output row.
    """
    return min(65535, int((2**32 - 1) / (255 * (max(scale, 1) + 2))))


def choose_band(size: int, columns_of_blocks: int) -> int:
    """Number of output rows per block, even: large if there are enough images to fill the GPU, small for a
    single image.
    """
    wanted = size * columns_of_blocks // BLOCKS
    return min(max(wanted // 2 * 2, 2), MAX_BAND)


def yuv_to_rgb(standard: str, *, full_range: bool) -> np.ndarray:
    """(3, 4) float32: matrix from (Y, U, V, 1) to red, green and blue, all in 0…255 (BT.601-7 §2.5, BT.709-6
    §3).
    """
    red, blue = LUMA[standard]
    green = 1 - red - blue
    of_luma, of_chroma, black = (1, 1, 0) if full_range else (255 / 219, 255 / 224, 16)
    from_u, from_v = 2 * (1 - blue) * of_chroma, 2 * (1 - red) * of_chroma
    u_v = np.array([[0, from_v], [-from_u * blue / green, -from_v * red / green], [from_u, 0]])
    constant = -of_luma * black - 128 * u_v.sum(1)
    return np.column_stack([np.full(3, of_luma), u_v, constant]).astype(np.float32)


def _widest(columns: np.ndarray, channels: int, tile: int) -> Any:
    """Maximum number of source bytes of a tile, counted from a multiple of 16 bytes at or before its first
    byte.
    """
    first = columns["start"][::tile] * channels // BYTES * BYTES
    last = columns["end"][np.minimum(np.arange(0, len(columns), tile) + tile, len(columns)) - 1] * channels
    return (last - first).max()
