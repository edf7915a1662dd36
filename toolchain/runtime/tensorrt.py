"""Sessions of a TensorRT engine: one stream, pinned buffers, a CUDA graph for each batch size."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.capabilities import capabilities
from slimdeploy.toolchain.runtime.device import Buffer, Device, Graph, open_device
from slimdeploy.toolchain.runtime.engine_record import (
    EngineRecord,
    check_loadable,
    engine_target,
    read_engine_record,
)
from slimdeploy.toolchain.runtime.session import SessionOptions
from slimdeploy.toolchain.runtime.tensorrt_callbacks import CannotStart, layer_profiler
from slimdeploy.toolchain.runtime.tensorrt_engine import activation_bytes, deserialize, single_tensor

_DTYPES = {"FLOAT": np.float32, "HALF": np.float16}


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine, with buffers for the maximum batch size."""

    name: str
    host: np.ndarray
    """Pinned, (batch, …) in the engine's type."""
    buffer: Buffer


class TensorrtSession:
    """An engine with one image input and one logits output. All memory is allocated here, none in `run`.

    A batch larger than the engine's profile is run in parts; a smaller one is padded. Contexts share one
    activation memory, because they run one after the other on one stream.
    """

    def __init__(
        self,
        trt: ModuleType,
        engine: Any,
        device: Device,
        *,
        path: Path,
        record: EngineRecord | None,
        graphs: bool,
    ) -> None:
        self._trt, self._able = trt, capabilities(trt.__version__)
        self._engine, self.device = engine, device
        self._plan_bytes = path.stat().st_size
        image = single_tensor(trt, engine, "INPUT", 4, path)
        logits = single_tensor(trt, engine, "OUTPUT", 2, path)
        fixed, channels, height, width = tuple(engine.get_tensor_shape(image))
        profile = [shape[0] for shape in engine.get_tensor_profile_shape(image, 0)] if fixed < 0 else [fixed]
        self.min_batch, self.max_batch = profile[0], profile[-1]
        self.input_shape = (channels, height, width)
        self.backend = "tensorrt" if graphs else "tensorrt-no-graph"
        self.precision = record.precision if record else "unknown"
        self.info = record.info(str(path)) if record else None

        self.stream = device.stream()
        self._events = tuple(device.event() for _ in range(4))
        self._buffers: list[Buffer] = []
        try:
            self.input = self._tensor(image)
            self.output = self._tensor(logits)
            self._activations = self._allocate(activation_bytes(self._able, engine))
            self._context = None if graphs else self._new_context()
        except BaseException:
            self._free_buffers()
            raise
        self._use_graphs = graphs  # each graph is stored with the context from which it was captured
        self._graphs: dict[int, tuple[Any, Graph]] = {}
        self._has_run = self._closed = False
        self.enqueue_ms: float | None = None
        """Host time to launch the network in the last run (like all these figures: of its last part, if it
        was split).
        """

    @property
    def device_memory_mb(self) -> dict[str, float]:
        """Device memory by use: the engine (size of the plan), the activations of the maximum batch, input
        and output.
        """
        named = {"plan": self._plan_bytes, "workspace": self._activations.nbytes}
        named["io"] = self.input.buffer.nbytes + self.output.buffer.nbytes
        return {name: nbytes / 2**20 for name, nbytes in named.items()}

    @property
    def copy_in_ms(self) -> float | None:
        """Time to copy the last run's images to the GPU."""
        return self._elapsed(0)

    @property
    def gpu_ms(self) -> float | None:
        """GPU time of the network in the last run, without copies."""
        return self._elapsed(1)

    @property
    def copy_out_ms(self) -> float | None:
        """Time to copy the last run's logits back."""
        return self._elapsed(2)

    def layer_ms(self, batch: int, *, runs: int = 20) -> dict[str, float]:
        """Median GPU time of each layer at this batch size, from TensorRT's profiler (without CUDA graph).
        The input buffer may contain any images.
        """
        profiler = layer_profiler(self._trt)
        context = self._new_context()
        self._set_batch(context, batch)
        context.profiler = profiler
        times: dict[str, list[float]] = {}
        for _ in range(runs):
            self._execute(context)
            self.stream.synchronize()
            for name, ms in profiler.take().items():
                times.setdefault(name, []).append(ms)
        return {name: statistics.median(ms) for name, ms in times.items()}

    def _elapsed(self, step: int) -> float | None:
        if not self._has_run or self._closed:
            return None
        return self.device.elapsed_ms(self._events[step], self._events[step + 1])

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self._closed:
            raise SlimdeployError("the session is closed")
        if batch.shape[1:] != self.input_shape:
            raise SlimdeployError(f"the engine expects images of {self.input_shape}, not {batch.shape[1:]}")
        logits = np.empty((len(batch), *self.output.host.shape[1:]), np.float32)
        with self.device.active():
            for start in range(0, len(batch), self.max_batch):
                part = batch[start : start + self.max_batch]
                logits[start : start + len(part)] = self._run_part(part)
        return logits

    def _run_part(self, images: np.ndarray) -> np.ndarray:
        count = max(len(images), self.min_batch)
        self.input.host[: len(images)] = images
        self.input.host[len(images) : count] = 0
        self._prepare(count)
        begin, start, end, done = self._events
        begin.record(self.stream)
        self.device.upload(self.input.buffer, self.input.host[:count], self.stream)
        start.record(self.stream)
        launched = time.perf_counter()
        self.launch(count)
        self.enqueue_ms = (time.perf_counter() - launched) * 1000
        end.record(self.stream)
        self.device.download(self.output.host[:count], self.output.buffer, self.stream)
        done.record(self.stream)
        self.stream.synchronize()
        self._has_run = True
        return self.output.host[: len(images)]

    def launch(self, count: int) -> None:
        """Queue the network on `stream` for the first `count` images in the buffer of `input`, `min_batch` to
        `max_batch` of them; the logits are written to the buffer of `output`.
        """
        self._prepare(count)
        if self._use_graphs:
            self._graphs[count][1].launch(self.stream)
        else:
            self._execute(self._context)

    def _prepare(self, count: int) -> None:
        """Prepare the context for the batch size; capture its graph if there is none yet."""
        if not self._use_graphs:
            self._set_batch(self._context, count)
        elif count not in self._graphs:
            # A graph uses the state of its context at capture: each one has its own context.
            context = self._new_context()
            self._set_batch(context, count)
            self._execute(context)  # the first run after a change of shape does work that can't be captured
            self.stream.synchronize()
            self._graphs[count] = (
                context,
                self.device.capture(self.stream, lambda: self._execute(context)),
            )

    def _new_context(self) -> Any:
        address, size = self._activations.address, self._activations.nbytes
        if self._able.sized_device_memory:
            managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(managed)
        else:
            context = self._engine.create_execution_context_without_device_memory()
        if context is None:
            raise SlimdeployError("TensorRT can't create an execution context: too little GPU memory?")
        if self._able.sized_device_memory:
            context.set_device_memory(address, size)
        else:
            context.device_memory = address
        for tensor in (self.input, self.output):
            context.set_tensor_address(tensor.name, tensor.buffer.address)
        return context

    def _set_batch(self, context: Any, count: int) -> None:
        shape = (count, *self.input_shape)
        if tuple(context.get_tensor_shape(self.input.name)) != shape and not context.set_input_shape(
            self.input.name, shape
        ):
            raise SlimdeployError(f"the engine can't run a batch of {count}")

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self.stream.handle):
            raise SlimdeployError("TensorRT failed to run the engine")

    def _tensor(self, name: str) -> Tensor:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise SlimdeployError(f"{name} is {kind}; supported: {' and '.join(_DTYPES)}")
        shape = (self.max_batch, *tuple(self._engine.get_tensor_shape(name))[1:])
        host = self.device.pinned(shape, _DTYPES[kind])
        return Tensor(name, host, self._allocate(host.nbytes))

    def _allocate(self, nbytes: int) -> Buffer:
        self._buffers.append(self.device.allocate(nbytes))
        return self._buffers[-1]

    def _free_buffers(self) -> None:
        for buffer in self._buffers:
            buffer.free()

    def close(self) -> None:
        """Runs in the thread that opened the device, whose context is needed to free memory."""
        if self._closed:
            return
        self._closed = True
        for _, graph in self._graphs.values():
            graph.free()
        # TensorRT frees a context before its engine; the memory of both must exist until then.
        self._graphs.clear()
        self._context = self._engine = None
        self._free_buffers()
        del self.stream, self._events, self.input, self.output
        self.device.close()

    def __enter__(self) -> TensorrtSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_session(path: Path, options: SessionOptions) -> TensorrtSession:
    """Load an engine on the GPU, after checking that it was built for this machine.

    Raises SlimdeployError if TensorRT or a GPU is missing, the plan is damaged, or it was built for another
    TensorRT or GPU: the error names the difference and the rebuild command.
    """
    import tensorrt as trt

    if options.device == "cpu":
        raise SlimdeployError(f"{path}: an engine runs on an NVIDIA GPU, not on the CPU")
    device = open_device()
    try:
        return load(trt, path, device, graphs=options.cuda_graph is not False)
    except BaseException:
        device.close()
        raise


def load(trt: ModuleType, path: Path, device: Device, *, graphs: bool) -> TensorrtSession:
    """Load an engine on `device`, which the session then owns."""
    record = read_engine_record(path)
    if record:
        check_loadable(path, record, engine_target(trt, device))
    rebuild = record.rebuild_here(path) if record else f"slimdeploy export {path.with_suffix('.onnx')} --trt"
    host_code = record is not None and record.version_compatible
    try:
        engine = deserialize(trt, path.read_bytes(), host_code=host_code)
    except CannotStart:
        raise
    except SlimdeployError as error:
        raise SlimdeployError(f"{path}: {error}; build it on this machine: {rebuild}") from error
    return TensorrtSession(trt, engine, device, path=path, record=record, graphs=graphs)
