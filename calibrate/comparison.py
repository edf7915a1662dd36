"""Compare a model with a baseline on the same labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.statistics import Interval, paired_difference


@dataclass(frozen=True)
class Comparison:
    """Accuracies are in 0…1; `drop` is in percentage points, positive if the model is worse."""

    baseline_accuracy: float
    accuracy: float
    drop: float
    drop_ci95: Interval
    max_abs_error: float
    """Largest logit difference."""
    relative_error: float
    """RMS of the logit differences ÷ RMS of the baseline's logits: more sensitive than accuracy."""
    top1_agreement: float
    images: int

    def to_json(self) -> dict[str, Any]:
        return {
            "max_abs_error": self.max_abs_error,
            "top1_agreement": self.top1_agreement,
            "images": self.images,
            "relative_error": self.relative_error,
            "accuracy": {"baseline": self.baseline_accuracy, "quantised": self.accuracy},
            "drop_points": self.drop,
            "drop_points_ci95": list(self.drop_ci95),
        }


def compare_logits(baseline: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> Comparison:
    """Compare `logits` with those of the baseline, both (N, classes), for `labels` (N,).

    The interval is of the paired difference. Raises SlimdeployError if there are no images or the labels
    don't fit.
    """
    if not len(labels):
        raise SlimdeployError("no images to compare on")
    if labels.max() >= baseline.shape[1]:
        raise SlimdeployError(
            f"the data has class index {labels.max()}, but the model has {baseline.shape[1]} classes"
        )
    expected, found = baseline.argmax(axis=1), logits.argmax(axis=1)
    gain, (low, high) = paired_difference(expected == labels, found == labels)
    difference = logits.astype(np.float64) - baseline
    size = float(np.sqrt(np.mean(np.square(baseline, dtype=np.float64))))
    return Comparison(
        baseline_accuracy=float((expected == labels).mean()),
        accuracy=float((found == labels).mean()),
        drop=-100 * gain + 0.0,  # no "-0.00"
        drop_ci95=(-100 * high, -100 * low),
        max_abs_error=float(np.abs(difference).max()),
        relative_error=float(np.sqrt(np.mean(difference**2))) / (size or 1.0),
        top1_agreement=float((expected == found).mean()),
        images=len(labels),
    )
