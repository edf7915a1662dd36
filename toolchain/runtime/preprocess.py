"""Preprocessing of pixels with numpy."""

from __future__ import annotations

import numpy as np

from slimdeploy.toolchain.images import grayscale
from slimdeploy.toolchain.preprocessing import Preprocessing


def normalise(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """(N, size, size, 3) uint8 in red, green, blue → (N, channels, size, size) float32, contiguous: scaled to
    0…1, then (x − mean) ÷ std per channel, in the network's order of channels.
    """
    if preprocessing.channels == "gray":
        images = grayscale(images)
    mean, std = np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32)
    scale, shift = 1 / (255 * std), -mean / std
    scaled = images.transpose(0, 3, 1, 2) * scale[:, None, None]
    done = scaled + shift[:, None, None]
    if preprocessing.channels == "bgr":
        done = done[:, ::-1]
    return np.ascontiguousarray(done, dtype=np.float32)
