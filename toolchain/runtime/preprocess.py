"""Images to network input with numpy alone."""

from __future__ import annotations

import numpy as np

from slimdeploy.toolchain.model_info import Preprocessing


def normalise(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32, contiguous: scaled to 0…1, then (x − mean) ÷ std per
    channel.
    """
    mean, std = np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32)
    scale, shift = 1 / (255 * std), -mean / std
    scaled = images.transpose(0, 3, 1, 2) * scale[:, None, None]
    return np.ascontiguousarray(scaled + shift[:, None, None], dtype=np.float32)
