"""Comparison of a model's results on the device with those on the host, and its tolerances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import Session

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.1, "mixed": 0.1}
"""Maximum logit difference relative to the largest expected logit. It is far above the effect of another
order of summation (1e-6 in FP32), and below that of a wrong kernel, scale or colour order. INT8 and mixed: a
value between two steps of 1/127 may be rounded either way, in each layer.
"""

MAX_ACCURACY_DROP = 0.02
"""Share of the evaluation images that the device may get wrong in addition to the host."""


@dataclass(frozen=True)
class GoldenResult:
    """Difference between the device's and the host's logits. `max_error` is relative to the largest expected
    logit.
    """

    max_error: float
    tolerance: float
    top1_agreement: float
    images: int

    @property
    def passed(self) -> bool:
        return self.max_error <= self.tolerance  # false for NaN


def compute_logits(
    session: Session, images: np.ndarray, preprocessing: Preprocessing, *, batch: int
) -> np.ndarray:
    """(N, H, W, 3) uint8 → (N, classes) float32, in batches of at most `batch`."""
    parts = [session.run(normalise(part, preprocessing)) for part in _batches(images, batch)]
    return np.concatenate(parts).astype(np.float32)


def compare(logits: np.ndarray, expected: np.ndarray, precision: str) -> GoldenResult:
    """Compare (N, classes) logits with the expected ones at `precision`."""
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(logits - expected).max()) / scale if np.isfinite(logits).all() else float("nan")
    agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
    return GoldenResult(error, TOLERANCES[precision], agreement, len(expected))


def _batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield images[start : start + size]
