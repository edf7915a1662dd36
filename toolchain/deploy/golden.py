"""The check that a model computes on the device what it computed on the host, and how close is close
enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.models.model_info import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import Session

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.1, "mixed": 0.1}
"""Largest difference of a logit, relative to the largest expected logit. Far above what another order of
summing does (1e-6 in FP32), and below what a wrong kernel, scale or colour order does. INT8 and mixed: a
value on the edge between two steps of 1/127 falls to either side, in each layer.
"""

MAX_ACCURACY_DROP = 0.02
"""How many of the evaluation images the device may get wrong beyond the host, as a share."""


@dataclass(frozen=True)
class GoldenResult:
    """How the device's logits differ from the host's. `max_error` is relative to the largest expected
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
    """Compare (N, classes) logits with those expected at `precision`."""
    scale = float(np.abs(expected).max()) or 1.0
    error = float(np.abs(logits - expected).max()) / scale if np.isfinite(logits).all() else float("nan")
    agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
    return GoldenResult(error, TOLERANCES[precision], agreement, len(expected))


def _batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield images[start : start + size]
