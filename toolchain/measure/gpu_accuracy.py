"""Accuracy of an engine counted on the GPU: only image bytes are copied there, and one number back.

preprocess.cu, the network and accuracy.cu run one after the other on the session's stream; logits are not
copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slimdeploy.kernels.classify import Accuracy
from slimdeploy.kernels.image_layout import ImageLayout
from slimdeploy.kernels.preprocess import Preprocess
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import statistics
from slimdeploy.toolchain.measure.accuracy import check_labels
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.tensorrt import TensorrtSession

PRECISIONS = {np.dtype(np.float32): "fp32", np.dtype(np.float16): "fp16"}


@dataclass(frozen=True)
class Count:
    """Number of images and of correct predictions; other results would need the logits."""

    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.images

    @property
    def interval(self) -> statistics.Interval:
        return statistics.proportion_interval(self.correct, self.images)

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The keys of an Evaluation; null for those that need logits."""
        unknown = (
            "top5_accuracy", "loss", "classes", "confusion", "calibration_error", "calibration_bins",
        )  # fmt: skip
        low, high = self.interval
        known = {"accuracy": self.accuracy, "accuracy_ci95": [low, high], "images": self.images}
        return {**known, **dict.fromkeys(unknown)}


@dataclass
class _Part:
    """A part of a buffer."""

    address: int
    nbytes: int

    def free(self) -> None:
        """Does nothing: the buffer owns the memory."""


def count_correct(
    session: TensorrtSession,
    images: np.ndarray | FileImages,
    labels: np.ndarray,
    preprocessing: Preprocessing,
) -> Count:
    """Run `session` on `images` (N, H, W, 3) uint8 of the network's size; count the images whose label has
    the largest logit.

    Preprocessing rounds slightly differently from numpy's (docs/kernels.md), so that a borderline image may
    change sides. Raises SlimdeployError if the labels don't fit the model, or there are no images.
    """
    if not len(images):
        raise SlimdeployError("no images to evaluate on")
    classes = session.output.host.shape[1]
    check_labels(labels, classes)
    device, stream = session.device, session.stream
    size, batch = preprocessing.size, session.max_batch
    kinds = [PRECISIONS[tensor.host.dtype] for tensor in (session.input, session.output)]
    fitted = replace(preprocessing, resize=None, interpolation="bilinear")  # images have the right size
    preprocess = Preprocess(device, ImageLayout("rgb", size, size), fitted, precision=kinds[0])
    accuracy = Accuracy(device, classes=classes, precision=kinds[1])
    staged = device.pinned((batch, size, size, 3), np.uint8)
    truth, counted = device.pinned(labels.shape, np.int32), device.pinned((1,), np.uint32)
    truth[:], counted[:] = labels, 0
    buffers = [device.allocate(array.nbytes) for array in (staged, truth, counted)]
    pixels, answers, correct = buffers
    try:
        device.upload(answers, truth, stream)
        device.upload(correct, counted, stream)
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            stream.synchronize()  # the staging memory is free again
            staged[: len(part)] = part
            device.upload(pixels, staged[: len(part)], stream)
            preprocess.queue(pixels, session.input.buffer, len(part), stream)
            session.launch(max(len(part), session.min_batch))
            own = _Part(answers.address + 4 * start, 4 * len(part))
            accuracy.queue(session.output.buffer, own, correct, len(part), stream)
        device.download(counted, correct, stream)
        stream.synchronize()
    finally:
        preprocess.close()
        for buffer in buffers:
            buffer.free()
    return Count(int(counted[0]), len(images))
