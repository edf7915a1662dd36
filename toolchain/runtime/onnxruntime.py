"""Sessions over onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import METADATA_KEY, ModelInfo
from slimdeploy.toolchain.runtime.session import SessionOptions


class OnnxSession:
    """An ONNX classifier with one image input and one output of logits."""

    def __init__(self, session: onnxruntime.InferenceSession, path: Path, backend: str) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or len(outputs[0].shape) != 2:
            raise SlimdeployError(f"{path}: not an image classifier (one 4-D input, one 2-D output)")
        channels, height, width = inputs[0].shape[1:]
        if not all(isinstance(n, int) for n in (channels, height, width)):
            raise SlimdeployError(f"{path}: the image size must be fixed, not {inputs[0].shape}")
        self._session: onnxruntime.InferenceSession | None = session
        self._input, self._output = inputs[0].name, outputs[0].name
        self.backend = backend
        self.input_shape = (channels, height, width)
        carried = session.get_modelmeta().custom_metadata_map
        self.info = ModelInfo.from_json(carried[METADATA_KEY], str(path)) if METADATA_KEY in carried else None
        self.precision = carried.get("precision", "fp32")

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self._session is None:
            raise SlimdeployError("the session is closed")
        return self._session.run([self._output], {self._input: batch})[0]

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> OnnxSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_session(path: Path, options: SessionOptions) -> OnnxSession:
    """Load an ONNX file on the CPU or, for `device="cuda"`, on the GPU.

    Raises SlimdeployError where the file can't be loaded, or CUDA is asked for and onnxruntime hasn't got it.
    """
    wanted = "CUDAExecutionProvider" if options.device == "cuda" else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise SlimdeployError(f"onnxruntime has no {wanted} here: pip install 'slimdeploy[gpu]'")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if options.threads:
        settings.intra_op_num_threads = options.threads
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=[wanted])
    except Exception as error:  # onnxruntime raises its own classes for a damaged or unsupported file
        raise SlimdeployError(
            f"{path}: onnxruntime can't load it ({' '.join(str(error).split())[:300]})"
        ) from error
    if session.get_providers()[0] != wanted:
        raise SlimdeployError(f"{path}: asked for {wanted}, got {session.get_providers()[0]}")
    return OnnxSession(session, path, "onnxruntime-cuda" if options.device == "cuda" else "onnxruntime-cpu")
