"""Calibration of a classifier's confidence: the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15
"""Bins of equal width over confidences from 0 to 1, as in the paper's experiments."""


@dataclass(frozen=True)
class Reliability:
    """For each bin (BINS,): the number of `images`, the sum of their confidences, and the number of correct
    ones.

    The confidence is the softmax probability of the predicted class (Guo et al., On Calibration of Modern
    Neural Networks, arXiv 1706.04599, section 2). Bin m contains confidences in (m/BINS, (m + 1)/BINS].
    """

    images: np.ndarray
    confidences: np.ndarray
    correct: np.ndarray

    @classmethod
    def of(cls, confidences: np.ndarray, correct: np.ndarray) -> Reliability:
        """`confidences` (N,) in 0…1, and `correct` (N,) bool."""
        bins = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
        return cls(*(np.bincount(bins, weight, BINS) for weight in (None, confidences, correct)))

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over all images of |accuracy − mean confidence| of their bin
        (equation 3).
        """
        return float(np.abs(self.correct - self.confidences).sum() / self.images.sum())

    def to_json(self) -> list[dict[str, Any]]:
        """One entry per bin; an empty bin has no confidence and no accuracy."""
        return [
            {
                "from": m / BINS,
                "to": (m + 1) / BINS,
                "images": int(images),
                "confidence": confidences / images if images else None,
                "accuracy": correct / images if images else None,
            }
            for m, (images, confidences, correct) in enumerate(
                zip(*(part.tolist() for part in (self.images, self.confidences, self.correct)), strict=True)
            )
        ]
