"""Right or wrong, image by image: what paired differences between models are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import statistics

Predict = Callable[[np.ndarray], np.ndarray]
"""Logits (n, classes) of images (n, H, W, 3) uint8."""


@dataclass(frozen=True)
class Evaluation:
    """`correct` (N,) bool, and the mean cross-entropy in nats."""

    correct: np.ndarray
    loss: float

    @property
    def images(self) -> int:
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def interval(self) -> statistics.Interval:
        return statistics.proportion_interval(int(self.correct.sum()), self.images)


def evaluate(
    predict: Predict, images: np.ndarray | FileImages, labels: np.ndarray, *, batch: int
) -> Evaluation:
    """Run `predict` over `images` (N, H, W, 3) uint8, `batch` at a time, and compare with `labels` (N,).

    Raises SlimdeployError where the labels don't fit the model's classes, or there are no images.
    """
    if not len(images):
        raise SlimdeployError("no images to evaluate on")
    parts = [predict(images[i : i + batch]) for i in range(0, len(images), batch)]
    logits = np.concatenate(parts).astype(np.float64)
    check_labels(labels, logits.shape[1])
    # log-sum-exp around the largest logit, which can't overflow
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return Evaluation(logits.argmax(axis=1) == labels, float(losses.mean()))


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raises SlimdeployError where a label isn't one of the model's `classes`."""
    if labels.max() >= classes:
        raise SlimdeployError(f"the data has a class number {labels.max()}, the model only {classes} classes")
