"""The runtimes that a latency table can be measured on, and what they have in common.

A backend is one file and one entry in BACKENDS: a function that opens it as `options` say.
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


BACKENDS: Registry[Callable[[LutOptions], LutBackend]] = Registry(
    "backend",
    Callable,
    {
        "onnxruntime": "slimdeploy.toolchain.latency.onnxruntime:open_backend",
        "tensorrt": "slimdeploy.toolchain.latency.tensorrt:open_backend",
    },
)
"""Name -> what opens it."""


@dataclass(frozen=True)
class LutOptions:
    """What to measure on, and what."""

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
        """What the times hold for, as a table's `device`: times measured under another say nothing here."""
        ...

    @property
    def revisits(self) -> bool:
        """Whether every network of a pass is measured twice, seconds apart: where other programs slow it
        down, and a visit is cheap.
        """
        ...

    def profile(self, graph: Graph, size: int) -> Sample:
        """Run the network with weights of noise: profiled layer by layer, then timed whole.

        Raises SlimdeployError where the runtime doesn't tell the time of one of its convolutions.
        """
        ...

    def whole_ms(self, graphs: Sequence[Graph], size: int, *, seconds: float) -> list[float]:
        """Median ms of a run of each network, each in a process of its own, in turn and in random order;
        `seconds` of running for each.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> LutBackend: ...

    def __exit__(self, *exception: object) -> None: ...


HARDWARE = ("cpu", "threads", "gpu", "compute_capability")
"""Keys of a table's `device` without which its times mean nothing; versions may move them a little."""


def open_backend(options: LutOptions) -> LutBackend:
    """Open the backend that `options` name.

    Raises SlimdeployError for an unknown one, a precision that it doesn't compute in, and a device that isn't
    here; ModuleNotFoundError where its library isn't installed.
    """
    return BACKENDS.find(options.backend)(options)


def open_for_table(device: dict[str, Any]) -> LutBackend:
    """The backend that a table with this `device` was measured on.

    Raises as `open_backend` does, and SlimdeployError where this machine isn't the one of the table.
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
    """The options that a table with this `device` was measured with."""
    return LutOptions(
        batch=int(device["batch"]),
        threads=device.get("threads"),
        backend=str(device["backend"]).partition("-")[0],  # a session's name, such as onnxruntime-cpu
        precision=precision_of(device),
    )


def run_times(run: Callable[[], Any], *, warm_up_s: float = 0.0) -> list[float]:
    """Warm up, at least so long, then time runs, ms each."""
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
    """The Sample of `layers`, ms by the convolutions' names and any others.

    Raises SlimdeployError where one of `convs` is missing.
    """
    if missing := [conv.name for conv in convs if not layers.get(conv.name)]:
        raise SlimdeployError(
            f"{runtime} doesn't tell the time of {missing[0]}: no latency table can be measured with it"
        )
    convs_ms = {conv.name: layers[conv.name] for conv in convs}
    rest_ms = sum(ms for name, ms in layers.items() if name not in convs_ms)
    return Sample(graph, convs_ms, rest_ms, total_ms)


def time_whole(
    models: Sequence[Path], backend: str, *, batch: int, threads: int | None, device: str, seconds: float
) -> list[float]:
    """Median ms of a run of each model on a session's backend: `LutBackend.whole_ms` of files."""
    from slimdeploy.toolchain.measure.options import TimingOptions
    from slimdeploy.toolchain.measure.process import launched
    from slimdeploy.toolchain.measure.subjects import subjects_for
    from slimdeploy.toolchain.measure.timing import time_models
    from slimdeploy.toolchain.runtime.session import SessionOptions

    options = SessionOptions(device=device, threads=threads)
    launch = functools.partial(launched, subjects_for(models, [backend], options), batch)
    timings = time_models(launch, len(models), TimingOptions(seconds=seconds))
    return [float(np.median(timing.samples())) for timing in timings]
