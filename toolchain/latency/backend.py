"""The runtimes that latency tables can be measured on, and their common interface.

A backend is one file and one entry in BACKENDS: a function that opens it with `options`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slimdeploy.toolchain.checks import MAX_BATCH, MAX_THREADS
from slimdeploy.toolchain.declared import check_declared, option
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency.fit import Sample
from slimdeploy.toolchain.latency.table import precision_of
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import Layer
from slimdeploy.toolchain.registry import Registry

PRECISIONS = ("fp32", "fp16", "int8")
WARM_UP_RUNS, MINIMUM_RUNS, MAXIMUM_RUNS, RUNS_S = 2, 3, 50, 0.15
LEAST_MS = 0.5e-3
"""The time of a layer that a profiler, which counts whole microseconds, reports as 0."""
LAUNCHES, INTERVAL = 4, 0.025
"""For the timing of whole networks: fewer launches than `bench`, with which each network would take minutes;
the interval is half the tolerance of `prune --latency-ms`.
"""


BACKENDS: Registry[Callable[[LutOptions], LutBackend]] = Registry(
    "backend",
    Callable,
    {
        "onnxruntime": "slimdeploy.toolchain.latency.onnxruntime:open_backend",
        "tensorrt": "slimdeploy.toolchain.latency.tensorrt:open_backend",
    },
)
"""Name -> function that opens the backend."""


@dataclass(frozen=True)
class LutOptions:
    """Options of the measurement."""

    backend: str = option("onnxruntime", "Runtime; onnxruntime measures on the CPU.", choices=BACKENDS)
    precision: str = option("fp32", "fp32 or int8; with tensorrt also fp16.", choices=PRECISIONS)
    batch: int = option(1, "Batch size.", least=1, most=MAX_BATCH)
    threads: int | None = option(None, "CPU threads.", least=1, most=MAX_THREADS, unset="all cores")

    def __post_init__(self) -> None:
        check_declared(self)


class LutBackend(Protocol):
    """A runtime on this machine, for one batch size and precision. A context manager that closes itself."""

    @property
    def device(self) -> dict[str, Any]:
        """The conditions of the times, stored as `device` in a table: times of other conditions are not
        comparable.
        """
        ...

    @property
    def revisits(self) -> bool:
        """Whether every network of a pass is measured twice, seconds apart: useful if other programs may
        disturb it, and if a repetition is cheap.
        """
        ...

    def profile(self, graph: Graph, size: int) -> Sample:
        """Run the network with random weights: profiled layer by layer, then timed as a whole.

        Raises SlimdeployError if the runtime doesn't report the time of one of its convolutions.
        """
        ...

    def whole_ms(self, graphs: Sequence[Graph], size: int, *, seconds: float) -> list[float]:
        """Median ms of each network, each in its own process, alternately and in random order, for `seconds`
        of running time each.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> LutBackend: ...

    def __exit__(self, *exception: object) -> None: ...


HARDWARE = ("cpu", "threads", "gpu", "compute_capability")
"""Keys of a table's `device` that must be equal; the versions may differ slightly."""


def open_backend(options: LutOptions) -> LutBackend:
    """Open the backend of `options`.

    Raises SlimdeployError for an unknown backend, an unsupported precision, and a missing device;
    ModuleNotFoundError if its library isn't installed.
    """
    return BACKENDS.find(options.backend)(options)


def open_for_table(device: dict[str, Any]) -> LutBackend:
    """The backend on which a table with this `device` was measured.

    Raises like `open_backend`, and SlimdeployError if this machine isn't that of the table.
    """
    backend = open_backend(options_of(device))
    differing = [
        f"{device[key]} (here {backend.device.get(key)})"
        for key in HARDWARE
        if key in device and device[key] != backend.device.get(key)
    ]
    if differing:
        backend.close()
        raise SlimdeployError(f"the latency table is of {', '.join(differing)}")
    return backend


def options_of(device: dict[str, Any]) -> LutOptions:
    """The options with which a table with this `device` was measured."""
    return LutOptions(
        batch=int(device["batch"]),
        threads=device.get("threads"),
        backend=str(device["backend"]).partition("-")[0],  # the name of a session, e.g. onnxruntime-cpu
        precision=precision_of(device),
    )


def run_times(run: Callable[[], Any], *, warm_up_s: float = 0.0) -> list[float]:
    """Warm up for a minimum time, then time runs, in ms each."""
    begin = time.perf_counter()
    warmed = 0
    while warmed < WARM_UP_RUNS or time.perf_counter() - begin < warm_up_s:
        run()
        warmed += 1
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < MINIMUM_RUNS or (len(times) < MAXIMUM_RUNS and time.perf_counter() - begin < RUNS_S):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1000)
    return times


def sample(
    graph: Graph, convs: Sequence[Layer], layers: dict[str, float], total_ms: float, runtime: str
) -> Sample:
    """The Sample of `layers`: ms by convolution name, and other layers; LEAST_MS in place of 0.

    Raises SlimdeployError if one of `convs` is missing.
    """
    if missing := [conv.name for conv in convs if conv.name not in layers]:
        raise SlimdeployError(
            f"{runtime} doesn't report the time of {missing[0]}: it can't measure a latency table"
        )
    convs_ms = {conv.name: layers[conv.name] or LEAST_MS for conv in convs}
    rest_ms = sum(ms for name, ms in layers.items() if name not in convs_ms)
    return Sample(graph, convs_ms, rest_ms or LEAST_MS, total_ms)


def time_whole(
    models: Sequence[Path], backend: str, *, batch: int, threads: int | None, device: str, seconds: float
) -> list[float]:
    """Median ms of each model file in a session of the backend: implements `LutBackend.whole_ms`."""
    from slimdeploy.toolchain.measure.options import TimingOptions
    from slimdeploy.toolchain.measure.process import launched
    from slimdeploy.toolchain.measure.subjects import subjects_for
    from slimdeploy.toolchain.measure.timing import time_models
    from slimdeploy.toolchain.runtime.session import SessionOptions

    options = SessionOptions(device=device, threads=threads)
    launch = functools.partial(launched, subjects_for(models, [backend], options), batch)
    wanted = TimingOptions(seconds=seconds, launches=LAUNCHES, ci=INTERVAL)
    pairs = [(0, other) for other in range(1, len(models))]
    timings = time_models(launch, len(models), wanted, pairs=pairs)
    return [float(np.median(timing.samples())) for timing in timings]
