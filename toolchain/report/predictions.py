"""Predictions of the original and the final network, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.data.of_model import data_of
from slimdeploy.toolchain.measure.accuracy import Evaluation, evaluate
from slimdeploy.toolchain.measure.labelled_images import Images, dataset_images, images_for
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

BATCH = 64


@dataclass(frozen=True)
class Predictions:
    """`images` (N, H, W, 3) uint8, and the predictions of both networks."""

    images: np.ndarray | FileImages
    original: Evaluation
    final: Evaluation
    class_names: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """(N,): the true class indices."""
        return self.final.labels

    def lost(self) -> np.ndarray:
        """Indices of the images that only the original classifies correctly."""
        return np.flatnonzero(self.original.correct & ~self.final.correct)

    def gained(self) -> np.ndarray:
        """Indices of the images that only the final network classifies correctly."""
        return np.flatnonzero(~self.original.correct & self.final.correct)


def predict(onnx: Mapping[str, Path], info: ModelInfo) -> Predictions:
    """Run both ONNX files, `original` and `final`, on the test images of the network's data.

    Raises SlimdeployError if the data or the files no longer exist.
    """
    load = dataset_images(data_of(info, onnx["final"]))
    found = images_for(info.preprocessing, info.class_names, str(onnx["final"]), load)
    original, final = (_evaluation(onnx[name], info, found) for name in ("original", "final"))
    return Predictions(found.images, original, final, found.class_names)


def _evaluation(path: Path, info: ModelInfo, found: Images) -> Evaluation:
    with open_session(path, options=SessionOptions(device="cpu")) as session:
        return evaluate(
            lambda images: session.run(normalise(images, info.preprocessing)),
            found.images,
            found.labels,
            batch=BATCH,
        )
