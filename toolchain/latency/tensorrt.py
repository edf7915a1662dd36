"""Latency tables in TensorRT, with times per layer from its profiler, mapped to convolutions as in the audit.

An engine is built for each network, so a pass takes minutes; TensorRT's timing cache makes later builds
faster.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.audit import EngineLayer, read_layers
from slimdeploy.toolchain.export.engine import export_engine, inspect_engine
from slimdeploy.toolchain.export.engine_options import EngineOptions
from slimdeploy.toolchain.latency.backend import LutOptions, run_times, sample, time_whole
from slimdeploy.toolchain.latency.fit import Sample
from slimdeploy.toolchain.latency.networks import OPSET, build_noise
from slimdeploy.toolchain.latency.profile import OTHER
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import Layer, priced_layers
from slimdeploy.toolchain.runtime.capabilities import capabilities
from slimdeploy.toolchain.runtime.device import Device, open_device
from slimdeploy.toolchain.runtime.engine_record import engine_target, read_engine_record
from slimdeploy.toolchain.runtime.tensorrt import TensorrtSession
from slimdeploy.toolchain.runtime.tensorrt_engine import deserialize

WARM_UP_S = 0.2
"""A GPU raises its clocks under load."""
INT8_OPSET = 19
"""The first opset in which the layers that aren't INT8 can run in FP16."""


class TensorrtBackend:
    """TensorRT on this machine's GPU, TF32 off."""

    revisits = False  # each measurement builds an engine

    def __init__(self, trt: ModuleType, gpu: Device, options: LutOptions) -> None:
        self._trt, self._gpu, self._options = trt, gpu, options
        machine = engine_target(trt, gpu)
        self._name = f"TensorRT {machine.tensorrt}"
        self.device: dict[str, Any] = {
            "gpu": machine.gpu,
            "compute_capability": machine.compute_capability,
            "backend": "tensorrt",
            "precision": options.precision,
            "batch": options.batch,
            "versions": {"tensorrt": machine.tensorrt, "driver": machine.driver or "unknown"},
        }

    def profile(self, graph: Graph, size: int) -> Sample:
        batch = self._options.batch
        with tempfile.TemporaryDirectory(prefix="slimdeploy-lut-") as folder:
            path = self._build(graph, size, Path(folder), "network")
            engine = deserialize(self._trt, path.read_bytes(), host_code=False)
            described = read_layers(inspect_engine(self._trt, engine, batch=batch))
            device, record = open_device(), read_engine_record(path)
            try:
                session = TensorrtSession(self._trt, engine, device, path=path, record=record, graphs=True)
            except BaseException:
                device.close()
                raise
            del engine  # owned by the session, which frees it before its memory
            with session:
                shape = (batch, graph.image_channels, size, size)
                images = np.random.default_rng(0).random(shape, dtype=np.float32)
                total_ms = float(
                    np.median(run_times(functools.partial(session.run, images), warm_up_s=WARM_UP_S))
                )
                profiled = session.layer_ms(batch)
        convs = priced_layers(graph, size)
        return sample(graph, convs, by_convolution(profiled, described, convs), total_ms, self._name)

    def whole_ms(self, graphs: Sequence[Graph], size: int, *, seconds: float) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="slimdeploy-lut-") as folder:
            engines = [self._build(graph, size, Path(folder), str(i)) for i, graph in enumerate(graphs)]
            return time_whole(
                engines, "tensorrt", batch=self._options.batch, threads=None, device="cuda", seconds=seconds
            )

    def _build(self, graph: Graph, size: int, folder: Path, name: str) -> Path:
        """The engine of the network; raises SlimdeployError if it isn't in the requested precision."""
        options, onnx = self._options, folder / f"{name}.onnx"
        highest = capabilities(self._trt.__version__).highest_opset or INT8_OPSET
        opset = min(highest, INT8_OPSET) if options.precision == "int8" else OPSET
        onnx.write_bytes(build_noise(graph, size, options.precision, opset=opset))
        batches = (options.batch, options.batch, options.batch)
        built = export_engine(
            self._trt, onnx, folder / f"{name}.engine", EngineOptions(batch=batches), device=self._gpu
        )
        if built.audit.failed:
            raise SlimdeployError(f"`precision` {options.precision}: {built.audit.failed}")
        return built.path

    def close(self) -> None:
        self._gpu.close()

    def __enter__(self) -> TensorrtBackend:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_backend(options: LutOptions) -> TensorrtBackend:
    """Raises ModuleNotFoundError if TensorRT is missing, SlimdeployError if there is no GPU, or if CPU
    threads are requested.
    """
    if options.threads:
        raise SlimdeployError("`threads`: cannot be used with `backend` tensorrt, which runs on the GPU")
    import tensorrt as trt

    return TensorrtBackend(trt, open_device(), options)


def by_convolution(
    profiled: Mapping[str, float], layers: Sequence[EngineLayer], convs: Sequence[Layer]
) -> dict[str, float]:
    """Convert times of an engine's layers to times of convolutions, by name, and OTHER for the rest.

    Operations fused into a convolution (ReLU, residual sum, quantisation) count as part of it. The time of a
    layer with several convolutions is divided by their MACs.
    """
    by_name = {conv.name: conv for conv in convs}
    computed: dict[str, list[Layer]] = {}
    for layer in layers:
        if not layer.reformat:
            computed.setdefault(layer.name, []).extend(by_name[n] for n in layer.nodes if n in by_name)
    found: dict[str, float] = {OTHER: 0.0}
    for name, ms in profiled.items():
        own = computed.get(name) or []
        for conv in own:
            found[conv.name] = found.get(conv.name, 0.0) + ms * conv.macs / sum(one.macs for one in own)
        if not own:
            found[OTHER] += ms
    return found
