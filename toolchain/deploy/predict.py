"""Convert logits to classes with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOT_FINITE = "the model computed NaN or infinite logits"
"""The error for an image that has no probabilities."""


@dataclass(frozen=True)
class Prediction:
    """A predicted class of an image."""

    label: str
    index: int
    probability: float


def top_classes(logits: np.ndarray, class_names: Sequence[str], k: int) -> list[list[Prediction]]:
    """The `k` most probable classes of each row of (N, classes) finite logits, in order; softmax in
    float64.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shares = np.exp(shifted)
    shares /= shares.sum(axis=1, keepdims=True)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :k]
    return [
        [Prediction(class_names[i], int(i), float(row[i])) for i in order]
        for row, order in zip(shares, best, strict=True)
    ]
