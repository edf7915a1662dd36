"""Logits of models: of files in the user's session, and of models in memory during calibration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

BATCH = 32
"""Batch size: all activations of a ResNet-50 for this many 32×32 images take 280 MB."""


def file_logits(
    path: Path, images: np.ndarray | FileImages, preprocessing: Preprocessing, *, threads: int | None = None
) -> np.ndarray:
    """(N, classes) float32 for `images` (N, H, W, 3) uint8, from the model at `path` in the user's
    session.
    """
    with open_session(path, options=SessionOptions(device="cpu", threads=threads)) as session:
        return np.concatenate([session.run(batch) for batch in batches(images, preprocessing)])


class Network:
    """An ONNX model on the CPU, optimised as in other sessions.

    `inner`: it returns activations besides the logits. Full optimisation can remove them: if the channels
    aren't multiples of 4, onnxruntime's own layout replaces them ("Failed to find node output").
    """

    def __init__(self, model: onnx.ModelProto, *, threads: int | None = None, inner: bool = False) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        if threads:
            settings.intra_op_num_threads = threads
        if inner:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        # Spinning idle threads would slow down numpy between two batches.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises its own classes
            reason = " ".join(str(error).split())[:300]
            raise SlimdeployError(f"onnxruntime can't load the model ({reason})") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """All outputs for `batch` (n, C, H, W) float32."""
        return self._session.run(None, {self._input: batch})

    def logits(self, images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """(N, classes) float32 of `images` (N, H, W, 3) uint8."""
        return np.concatenate([self.run(batch)[0] for batch in batches(images, preprocessing)])


def batches(
    images: np.ndarray | FileImages, preprocessing: Preprocessing, size: int = BATCH
) -> Iterator[np.ndarray]:
    """`images` (N, H, W, 3) uint8 as network input, `size` at a time."""
    for start in range(0, len(images), size):
        yield normalise(images[start : start + size], preprocessing)
