"""Latency tables in onnxruntime on the CPU, with times per layer from its profiler."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency.backend import WARM_UP_RUNS, LutOptions, run_times, sample, time_whole
from slimdeploy.toolchain.latency.fit import Sample
from slimdeploy.toolchain.latency.networks import build_noise
from slimdeploy.toolchain.latency.profile import end_profile, profiling_session, sum_by_layer
from slimdeploy.toolchain.measure import conditions
from slimdeploy.toolchain.networks.graph import INPUT, Graph
from slimdeploy.toolchain.networks.layers import priced_layers


@dataclass(frozen=True)
class OnnxruntimeBackend:
    """onnxruntime on this machine's CPU."""

    options: LutOptions
    device: dict[str, Any]
    revisits: bool = True

    def profile(self, graph: Graph, size: int) -> Sample:
        shape = (self.options.batch, graph.image_channels, size, size)
        images = np.random.default_rng(0).random(shape, dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            session = profiling_session(self._build(graph, size), Path(folder), threads=self.options.threads)
            run = functools.partial(session.run, None, {INPUT: images})
            run_times(run)
            events = end_profile(session)
        total_ms = float(np.median(run_times(run)))  # without profiling
        convs = priced_layers(graph, size)
        layers = sum_by_layer(events, graph, skip=WARM_UP_RUNS)
        return sample(graph, convs, layers, total_ms, f"onnxruntime {onnxruntime.__version__}")

    def whole_ms(self, graphs: Sequence[Graph], size: int, *, seconds: float) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            models = [Path(folder) / f"{i}.onnx" for i in range(len(graphs))]
            for model, graph in zip(models, graphs, strict=True):
                model.write_bytes(self._build(graph, size))
            return time_whole(
                models, "onnxruntime", batch=self.options.batch, threads=self.options.threads, device="cpu",
                seconds=seconds,
            )  # fmt: skip

    def _build(self, graph: Graph, size: int) -> bytes:
        return build_noise(graph, size, self.options.precision, target="cpu")

    def close(self) -> None:
        """Does nothing: there is no state to release between networks."""

    def __enter__(self) -> OnnxruntimeBackend:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_backend(options: LutOptions) -> OnnxruntimeBackend:
    """Raises SlimdeployError for FP16, and for more threads than processors: they would wait for others."""
    if options.precision == "fp16":
        raise SlimdeployError(
            "`precision` fp16: onnxruntime supports fp32 and int8 on a CPU; `backend` tensorrt also "
            "supports fp16"
        )
    machine = conditions.machine()
    if options.threads and options.threads > machine["cores"]:
        raise SlimdeployError(f"`threads` {options.threads}: this machine has {machine['cores']} processors")
    # By default onnxruntime uses the cores without hyper-threading; a table names the threads that it used.
    options = replace(options, threads=options.threads or machine["cores"])
    device = {
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "backend": "onnxruntime-cpu",
        "threads": options.threads,
        **({} if options.precision == "fp32" else {"precision": options.precision}),
        "batch": options.batch,
        "versions": {"onnxruntime": onnxruntime.__version__},
    }
    return OnnxruntimeBackend(options, device)
