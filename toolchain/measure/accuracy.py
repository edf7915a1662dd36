"""Evaluation of a classifier on labelled images: accuracy, errors by class, and calibration of its
confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import statistics
from slimdeploy.toolchain.measure.reliability import Reliability

Predict = Callable[[np.ndarray], np.ndarray]
"""Logits (n, classes) of images (n, H, W, 3) uint8."""
Answered = tuple[np.ndarray, np.ndarray]
"""Logits (n, classes) and labels (n,) of a batch."""
TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """`labels` and `answers` (N,): the true class and the predicted class, the first of equal logits.
    `top5_accuracy`: share of images whose label is among the five largest logits. `loss`: mean cross-entropy
    in nats.
    """

    classes: int
    labels: np.ndarray
    answers: np.ndarray
    top5_accuracy: float
    loss: float
    reliability: Reliability

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return self.labels == self.answers

    @property
    def images(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def interval(self) -> statistics.Interval:
        return statistics.proportion_interval(int(self.correct.sum()), self.images)

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix (classes, classes): rows are true classes, columns predictions."""
        cells = np.bincount(self.labels * self.classes + self.answers, minlength=self.classes**2)
        return cells.reshape(self.classes, self.classes)

    @property
    def recall(self) -> list[float | None]:
        """Recall of each class; None for a class without images."""
        return _shares(self.confusion, axis=1)

    @property
    def precision(self) -> list[float | None]:
        """Precision of each class; None for a class that was never predicted."""
        return _shares(self.confusion, axis=0)

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        low, high = self.interval
        confusion = self.confusion
        columns = (class_names, confusion.sum(1).tolist(), self.precision, self.recall)
        keys = ("name", "images", "precision", "recall")
        return {
            "accuracy": self.accuracy,
            "accuracy_ci95": [low, high],
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "images": self.images,
            "classes": [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)],
            "confusion": confusion.tolist(),
            "calibration_error": self.reliability.error,
            "calibration_bins": self.reliability.to_json(),
        }


def evaluate(
    predict: Predict, images: np.ndarray | FileImages, labels: np.ndarray, *, batch: int
) -> Evaluation:
    """Run `predict` over `images` (N, H, W, 3) uint8, `batch` at a time, and compare with `labels` (N,).

    Raises SlimdeployError like `judge`.
    """

    def answered() -> Iterator[Answered]:
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            yield predict(images[part]), labels[part]

    return judge(answered())


def judge(answered: Iterable[Answered]) -> Evaluation:
    """Compare logits (n, classes) with labels (n,), batch by batch.

    Raises SlimdeployError where a label doesn't fit the model's classes, a logit isn't a number, or there are
    no images.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    classes = 0
    for given, truth in answered:
        logits, classes = given.astype(np.float64), given.shape[1]
        check_labels(truth, classes)
        if not np.isfinite(logits).all():
            raise SlimdeployError("the model's logits contain NaN or infinity: it can't be evaluated")
        # log-sum-exp relative to the largest logit can't overflow
        shifted = logits - logits.max(axis=1, keepdims=True)
        totals = np.exp(shifted).sum(axis=1)
        losses = np.log(totals) - shifted[np.arange(len(truth)), truth]
        # The largest logit's exponential is 1.
        parts.append((truth, logits.argmax(axis=1), _ranks(logits, truth), losses, 1 / totals))
    if not parts:
        raise SlimdeployError("no images to evaluate on")
    labels, answers, ranks, losses, confidences = map(np.concatenate, zip(*parts, strict=True))
    reliability = Reliability.of(confidences, ranks == 0)
    return Evaluation(
        classes, labels, answers, float((ranks < TOP).mean()), float(losses.mean()), reliability
    )


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raises SlimdeployError if a label isn't one of the model's `classes`."""
    if not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise SlimdeployError(f"the data has class index {wrong}, but the model has only {classes} classes")


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,): number of classes ranked before the label, by logit, and by index for equal logits."""
    own = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(axis=1)


def _shares(confusion: np.ndarray, *, axis: int) -> list[float | None]:
    totals = confusion.sum(axis=axis)
    return [
        int(right) / int(all_) if all_ else None
        for right, all_ in zip(confusion.diagonal(), totals, strict=True)
    ]
