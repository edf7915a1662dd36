"""Sessions of torch: eager, compiled, channels-last, with CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.runtime.session import SessionOptions
from slimdeploy.toolchain.runtime.torch_device import torch_device

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UP_RUNS = 3
"""Runs before a CUDA graph is captured, in which cuDNN chooses its algorithms and allocates."""


class TorchSession:
    """A classifier in torch. It computes in `precision`; logits are returned as float32.

    `options.threads` is a setting of the whole process in torch, until the session is closed.
    """

    def __init__(self, network: nn.Module, info: ModelInfo, *, device: str, options: SessionOptions) -> None:
        self._threads_before: int | None = None
        if options.threads:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(options.threads)
        self.device = torch.device(device)
        self.precision = options.precision or "fp32"
        self.info: ModelInfo | None = info
        self.input_shape = info.preprocessing.image_shape
        self._dtype = DTYPES[self.precision]
        self._layout = torch.channels_last if options.channels_last else torch.contiguous_format
        network = network.to(self.device, self._dtype).eval()
        network = network.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._forward: Callable[[Tensor], Tensor] | None = network
        if options.compiled:
            # Static shapes: a measurement needs one graph per batch size.
            self._forward = torch.compile(network, dynamic=False)
        if options.cuda_graph:
            self._forward = GraphedForward(self._forward)
        self.backend = _backend_name(options, self.device)
        self._events: list[torch.cuda.Event] | None = None
        if self.device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.enqueue_ms: float | None = None
        """Host time to launch the network in the last run on the GPU; None on the CPU, which has no queue."""

    @torch.inference_mode()
    def run(self, batch: np.ndarray) -> np.ndarray:
        if self._forward is None:
            raise SlimdeployError("the session is closed")
        images = torch.from_numpy(np.ascontiguousarray(batch)).to(
            self.device, self._dtype, memory_format=self._layout
        )
        if self._events is None:
            return self._forward(images).float().numpy()
        self._events[0].record()
        launched = time.perf_counter()
        logits = self._forward(images)
        self.enqueue_ms = (time.perf_counter() - launched) * 1000
        self._events[1].record()
        return logits.float().cpu().numpy()

    @property
    def gpu_ms(self) -> float | None:
        """GPU time of the network in the last run in ms, between two CUDA events; None on the CPU."""
        if self._events is None or self.enqueue_ms is None:
            return None
        return self._events[0].elapsed_time(self._events[1])

    @property
    def device_memory_mb(self) -> dict[str, float]:
        """Peak device memory of torch, weights included; empty on the CPU."""
        return {"peak": torch.cuda.max_memory_allocated() / 2**20} if self._events else {}

    def close(self) -> None:
        if self._threads_before:
            torch.set_num_threads(self._threads_before)
        self._threads_before = self._forward = None

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class GraphedForward:
    """Replays `forward` as a CUDA graph, captured once for each input shape."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self._forward = forward
        self._captured: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """The result is in the graph's memory: the next call with this shape overwrites it."""
        if images.shape not in self._captured:
            self._captured[images.shape] = self._capture(images)
        graph, own_input, own_output = self._captured[images.shape]
        own_input.copy_(images)
        graph.replay()
        return own_output

    def _capture(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        own_input = images.clone()
        # Capture needs a stream other than the default one, and all memory allocated before it starts.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._forward(own_input)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            own_output = self._forward(own_input)
        return graph, own_input, own_output


def open_session(path: Path, options: SessionOptions) -> TorchSession:
    """Build the network from a checkpoint and run it on the CPU or the GPU.

    `options.tf32` is a setting of the whole process in torch. Raises SlimdeployError for an unreadable
    checkpoint, missing CUDA, or a CUDA graph without CUDA.
    """
    device = torch_device(options.device)
    if options.precision not in (None, *DTYPES):
        raise SlimdeployError(f"torch runs {', '.join(DTYPES)}, not {options.precision}")
    if options.cuda_graph and device != "cuda":
        raise SlimdeployError("a CUDA graph needs `device` cuda and an NVIDIA GPU")
    checkpoint = load_checkpoint(path)
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.tf32
        torch.backends.cudnn.benchmark = True
    return TorchSession(checkpoint.network, checkpoint.info, device=device, options=options)


def _backend_name(options: SessionOptions, device: torch.device) -> str:
    ways = {"compiled": options.compiled, "channels-last": options.channels_last, "graph": options.cuda_graph}
    return "-".join(["torch", *(way for way, on in ways.items() if on), device.type])
