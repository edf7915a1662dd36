"""How the work of preprocess.cu is divided among threads, and which layouts are refused."""

import numpy as np
import pytest

from slimdeploy.kernels.image_layout import ImageLayout
from slimdeploy.kernels.preprocess import choose_band, choose_peak, choose_tile
from slimdeploy.kernels.resize import taps
from slimdeploy.toolchain.errors import SlimdeployError


def test_tiles_fit_in_what_a_block_filters():
    for width, channels, size, tile in [
        (1920, 1, 224, 224),
        (1920, 3, 224, 112),
        (32, 3, 32, 32),
        (9000, 3, 2, 1),
    ]:
        assert choose_tile([(taps(width, size), channels)], 4096) == tile


def test_weighted_sums_of_white_fit_in_32_bits():
    for scale in (0.1, 1, 8, 256, 300, 9000):
        window = taps(int(8 * scale) or 1, 8)
        step = 1 / max(scale, 1)
        for tap in window:
            weights = 1 - np.abs(tap["first"] + np.arange(tap["end"] - tap["start"]) * step)
            assert 0 < 255 * np.rint(weights * choose_peak(scale)).sum() < 2**32
    assert choose_peak(8) == 65535


def test_bands_are_even_and_grow_with_the_batch():
    assert [choose_band(224, blocks) for blocks in (1, 20, 64, 1000)] == [2, 4, 14, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yuyv", 4, 4), "unknown image format 'yuyv'; known: rgb, bgr, nv12"),
        (("rgb", 0, 4), "an image can't have 0×4 pixels"),
        (("rgb", 4, 4, 11), "pitch 11 is less than a row's 12 bytes"),
        (("rgb", 4, 4, 12, 47), "image_stride 47 is less than an image's 48 bytes"),
        (("nv12", 4, 4, 4, None, 15), "chroma_offset 15 lies within the luma plane"),
        (("nv12", 4, 4, 4, None, None, "bt2020"), "unknown colour standard 'bt2020'; known: bt601, bt709"),
    ],
)
def test_refuses_layouts_that_cannot_be(arguments, message):
    with pytest.raises(SlimdeployError, match="^" + message.replace("'", ".")):
        ImageLayout(*arguments)
