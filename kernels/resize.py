"""Windows and weights of a bilinear resize, antialiased for downscaling: one axis at a time.

The definition is that of PIL (`Image.resize(…, BILINEAR)`, `reducing_gap=None`) and torch
(`interpolate(mode="bilinear", antialias=True)`): half-pixel centres, and a triangle as wide as the scale
factor.
"""

from __future__ import annotations

import numpy as np

TAP = np.dtype([("start", "<i4"), ("end", "<i4"), ("first", "<f4"), ("norm", "<f4")])
"""`Tap` of preprocess.cu: samples start … end−1, the j-th weighing norm × (1 − |first + j × step|)."""


def step(extent: float, size: int) -> float:
    """Distance between neighbouring samples on the triangle of half width 1, if `extent` samples are resized
    to `size`.
    """
    return 1 / max(extent / size, 1)


def taps(samples: int, size: int, *, extent: float | None = None) -> np.ndarray:
    """The window of each of `size` outputs over `samples` inputs: (size,) TAP, computed in float64. `extent`
    is the exact length of the input in samples if it isn't a whole number (chroma of an image of odd size).
    """
    extent = samples if extent is None else extent
    scale, inverse = extent / size, step(extent, size)
    centre = (np.arange(size) + 0.5) * scale
    start = np.clip(np.floor(centre - 1 / inverse + 0.5), 0, samples - 1).astype(np.int64)
    end = np.clip(np.floor(centre + 1 / inverse + 0.5), start + 1, samples).astype(np.int64)
    first = (start + 0.5 - centre) * inverse
    offsets = np.arange(int((end - start).max()))
    weights = np.maximum(1 - np.abs(first[:, None] + offsets * inverse), 0)
    total = np.where(offsets < (end - start)[:, None], weights, 0).sum(1)
    table = np.zeros(size, TAP)
    table["start"], table["end"], table["first"], table["norm"] = start, end, first, 1 / total
    return table
