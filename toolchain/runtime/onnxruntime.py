"""Sessions of onnxruntime: on the CPU, on CUDA, or with its TensorRT provider."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from slimdeploy.toolchain.errors import ONNXRUNTIME_ON_GPU, SlimdeployError, shorten
from slimdeploy.toolchain.launch import cpu_count
from slimdeploy.toolchain.models.model_info import METADATA_KEY, ModelInfo
from slimdeploy.toolchain.runtime.onnx_file import OnnxFacts, read_onnx
from slimdeploy.toolchain.runtime.providers import load_error, mend
from slimdeploy.toolchain.runtime.session import SessionOptions

# Backend -> its providers; the first one must run the network.
PROVIDERS = {
    "onnxruntime-cpu": ("CPUExecutionProvider",),
    "onnxruntime-cuda": ("CUDAExecutionProvider",),
    "onnxruntime-tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


class OnnxSession:
    """An ONNX classifier with one image input and one output of logits.

    With `bound`, a device such as `cuda`, input and output are in its memory, allocated once per batch size.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, path: Path, backend: str, *, bound: str | None = None
    ) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or len(outputs[0].shape) != 2:
            raise SlimdeployError(f"{path}: not an image classifier (one 4-D input, one 2-D output)")
        channels, height, width = inputs[0].shape[1:]
        if not all(isinstance(n, int) for n in (channels, height, width)):
            raise SlimdeployError(f"{path}: the image size must be fixed, not {inputs[0].shape}")
        self._session: onnxruntime.InferenceSession | None = session
        self._path = path
        self._input, self._output = inputs[0].name, outputs[0].name
        self._bound_to, self._bound = bound, dict[int, _Bound]()
        self.backend = backend
        self.input_shape = (channels, height, width)
        carried = session.get_modelmeta().custom_metadata_map
        self.info = ModelInfo.from_json(carried[METADATA_KEY], str(path)) if METADATA_KEY in carried else None
        self.precision = carried.get("precision", "fp32")

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self._session is None:
            raise SlimdeployError("the session is closed")
        if self._bound_to is None:
            return self._computed(batch)
        if len(batch) not in self._bound:
            self._bound[len(batch)] = self._bind(batch, self._bound_to)
        bound = self._bound[len(batch)]
        bound.images.update_inplace(np.ascontiguousarray(batch))
        # Returns after the work is done: onnxruntime waits for its stream after a bound run.
        self._session.run_with_iobinding(bound.binding)
        return np.array(bound.binding.get_outputs()[0].numpy())  # a copy: the next run overwrites it

    def _computed(self, batch: np.ndarray) -> np.ndarray:
        assert self._session is not None
        try:
            return self._session.run([self._output], {self._input: batch})[0]
        except Exception as error:  # onnxruntime raises its own classes for what the file makes impossible
            raise SlimdeployError(f"{self._path}: onnxruntime can't run it ({shorten(error)})") from error

    def _bind(self, batch: np.ndarray, device: str) -> _Bound:
        assert self._session is not None
        images = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(batch), device, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, images)
        binding.bind_output(self._output, device)
        return _Bound(images, binding)

    def close(self) -> None:
        self._bound.clear()
        self._session = None

    def __enter__(self) -> OnnxSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Bound:
    """The device memory of one batch size."""

    images: Any
    binding: Any


def open_session(path: Path, options: SessionOptions) -> OnnxSession:
    """Load an ONNX file on the CPU or, for `device="cuda"` or `tensorrt=True`, on the GPU.

    Raises SlimdeployError if the file can't be loaded, or if the GPU is requested and onnxruntime, or a part
    of the network, would run on the CPU instead.
    """
    facts = read_onnx(path)
    backend = "onnxruntime-tensorrt" if options.tensorrt else f"onnxruntime-{_device(options)}"
    wanted = PROVIDERS[backend]
    on_gpu = backend != "onnxruntime-cpu"
    if wanted[0] not in onnxruntime.get_available_providers():
        raise SlimdeployError(f"onnxruntime has no {wanted[0]} here: {ONNXRUNTIME_ON_GPU}")
    for name in wanted:
        if reason := load_error(name):
            raise SlimdeployError(f"onnxruntime's {name} can't be loaded: {reason}; {mend(reason)}")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = thread_count(options.threads)
    if not options.spin:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if on_gpu:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    elif facts.can_overflow:
        # Slower, but exact on CPUs whose fast kernels saturate; onnxruntime ignores it on other CPUs.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    providers = [(name, _provider_options(name, facts, options)) for name in wanted]
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # onnxruntime raises its own classes for a damaged or unsupported file
        if on_gpu and "fallback to CPU EP has been explicitly disabled" in str(error):
            # Seen with INT8: the CUDA provider has no quantized convolutions.
            raise SlimdeployError(
                f"{path}: onnxruntime's {wanted[0]} has no kernel for some of its operators, such as INT8 "
                "convolutions: use `device` cpu or `backend` tensorrt"
            ) from error
        raise SlimdeployError(f"{path}: onnxruntime can't load it ({shorten(error)})") from error
    if session.get_providers()[0] != wanted[0]:
        raise SlimdeployError(f"{path}: asked for {wanted[0]}, got {session.get_providers()[0]}")
    session.disable_fallback()  # an error at run time must not move it to the CPU either
    return OnnxSession(session, path, backend, bound="cuda" if on_gpu else None)


def thread_count(threads: int | None) -> int:
    """Threads of a session, for `intra_op_num_threads`; 0 is onnxruntime's default, one for each core.

    The default counts the cores of the machine. If this process may use only some (taskset, a container), it
    would start more threads than can run at once, and they would wait for each other.
    """
    usable = cpu_count()
    return threads or (usable if usable < (os.cpu_count() or 1) else 0)


def _device(options: SessionOptions) -> str:
    return "cuda" if options.device == "cuda" else "cpu"


def _provider_options(name: str, facts: OnnxFacts, options: SessionOptions) -> dict[str, str]:
    if name == "CUDAExecutionProvider":
        return {"use_tf32": str(int(options.tf32))}
    if name == "TensorrtExecutionProvider":
        # Its networks are weakly typed: flags must allow the precisions of the file.
        return {"trt_fp16_enable": str(facts.half), "trt_int8_enable": str(facts.quantised)}
    return {}
