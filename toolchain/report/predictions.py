"""What the original and the final network answer, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.data.of_model import data_of
from slimdeploy.toolchain.measure.labelled_images import dataset_images, images_for
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

BATCH = 64


@dataclass(frozen=True)
class Predictions:
    """`images` (N, H, W, 3) uint8; `labels`, `original` and `final` (N,): the class numbers, true and
    answered.
    """

    images: np.ndarray | FileImages
    labels: np.ndarray
    original: np.ndarray
    final: np.ndarray
    class_names: tuple[str, ...]

    def class_accuracy(self, answers: np.ndarray) -> list[float]:
        """Accuracy within each class; a class without test images counts as 0."""
        right = answers == self.labels
        return [float(right[self.labels == k].mean()) if (self.labels == k).any() else 0.0
                for k in range(len(self.class_names))]  # fmt: skip

    def lost(self) -> np.ndarray:
        """Numbers of the images that only the original gets right."""
        return np.flatnonzero((self.original == self.labels) & (self.final != self.labels))

    def gained(self) -> np.ndarray:
        """Numbers of the images that only the final network gets right."""
        return np.flatnonzero((self.original != self.labels) & (self.final == self.labels))


def predict(folder: Path, info: ModelInfo) -> Predictions:
    """Run both ONNX files of the run in `folder` over the test images that the network was trained with.

    Raises SlimdeployError where the data isn't there any more.
    """
    load = dataset_images(data_of(info, folder))
    found = images_for(info.preprocessing, info.class_names, str(folder), load)
    original = _answers(folder / "original.onnx", info, found.images)
    final = _answers(folder / "final.onnx", info, found.images)
    return Predictions(found.images, found.labels, original, final, found.class_names)


def _answers(path: Path, info: ModelInfo, images: np.ndarray | FileImages) -> np.ndarray:
    with open_session(path, options=SessionOptions(device="cpu")) as session:
        parts = [
            session.run(normalise(images[i : i + BATCH], info.preprocessing)).argmax(axis=1)
            for i in range(0, len(images), BATCH)
        ]
    return np.concatenate(parts)
