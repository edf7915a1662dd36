"""The worker process that measures one model: its session, its clock and its memory.

It receives commands through a pipe and blocks in between, so that an idle model uses no CPU time.
"""

from __future__ import annotations

import gc
import importlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError, missing_library
from slimdeploy.toolchain.measure import gpu
from slimdeploy.toolchain.measure import process_memory as memory
from slimdeploy.toolchain.models.model_info import versions
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import Session

Opener = Callable[[], Session]
"""Opens the session to measure. It is sent to the process, so it must be picklable."""

RAW = {
    3: Preprocessing(1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    1: Preprocessing(1, (0.0,), (1.0,), channels="gray"),
}
"""For a model without preprocessing: pixels scaled to 0…1. Its time is right, its accuracy is not. The size
isn't used.
"""

Block = dict[str, np.ndarray]
"""Samples in ms, run by run: always HOST, and the GPU figures that the session reports (gpu.RUN_FIGURES)."""
HOST = "host_ms"

WINDOWS = 3
"""The warm-up ends when the medians of this number of consecutive windows agree."""
WINDOW_AGREEMENT = 0.05
STAGES = ("preprocess", "inference", "postprocess", "total")
STAGE_RUNS = 3
"""Minimum number of runs whose stages are timed."""


@dataclass(frozen=True)
class Opened:
    """Reported by a worker when its model is loaded."""

    backend: str
    precision: str
    input_shape: tuple[int, int, int]
    params: int | None
    macs: int | None
    preprocessing: Preprocessing | None
    """None for a model without description, whose accuracy can't be measured."""
    class_names: tuple[str, ...] | None
    versions: dict[str, str]

    @property
    def on_cpu(self) -> bool:
        return self.backend.endswith("-cpu")


@dataclass(frozen=True)
class WarmUp:
    """`settled` is False if the windows did not agree within the maximum time."""

    runs: int
    seconds: float
    settled: bool


@dataclass(frozen=True)
class MemoryUse:
    """MB (2^20 bytes). `idle` is the process with the library loaded and no model; `peak` is that of loading
    the model and of its timed runs, with one input batch; `growth` is the increase of resident memory from
    the first runs of the warm-up to the last timed run.
    """

    idle: float
    peak: float
    growth: float
    device: dict[str, float]
    """Device memory reported by the session: plan, context, workspace, peak."""


class Bench:
    """The commands. Each public method is one; arguments and results are sent through the pipe."""

    def __init__(self, opener: Opener, modules: tuple[str, ...]) -> None:
        self._opener = opener
        for name in modules:
            importlib.import_module(name)
        gc.collect()
        memory.reset_peak()
        self._idle_mb = memory.resident_mb()
        self._warm_mb = self._idle_mb

    def open(self, batch: int) -> Opened:
        """Load the model and create its input: `batch` random images."""
        self._session = self._opener()
        session, info = self._session, self._session.info
        channels, height, width = session.input_shape
        cost = None
        if info is not None:
            cost = network_cost(info.graph, info.preprocessing.size)
        if channels not in RAW:
            raise SlimdeployError(f"the model takes images with {channels} channels: slimdeploy has 3, or 1")
        self._preprocessing = info.preprocessing if info else RAW[channels]
        self._loaded_mb = memory.peak_resident_mb()
        random = np.random.default_rng(0)
        self.use_images(random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8))
        return Opened(
            session.backend,
            session.precision,
            session.input_shape,
            cost.params if cost else None,
            cost.macs if cost else None,
            info.preprocessing if info else None,
            info.class_names if info else None,
            versions(),
        )

    def use_images(self, images: np.ndarray) -> None:
        """Use `images` (batch, H, W, 3) uint8 instead of random ones."""
        self._images = images
        self._batch = normalise(images, self._preprocessing)
        memory.reset_peak()  # the temporary copies made here are not the model's

    def warm_up(self, floor_s: float, limit_s: float) -> WarmUp:
        """Run for at least `floor_s`, until the last windows agree; at most about `limit_s`.

        At least two windows are run, after a first run that allocates memory.
        """
        start, runs = time.perf_counter(), len(self.block(0.0)[HOST])
        gc.collect()
        self._warm_mb = memory.resident_mb()
        medians: list[float] = []
        window_s = floor_s / WINDOWS
        while True:
            samples = self.block(window_s)[HOST]
            runs += len(samples)
            medians.append(float(np.median(samples)))
            last, elapsed = medians[-WINDOWS:], time.perf_counter() - start
            agree = len(last) > 1 and max(last) <= min(last) * (1 + WINDOW_AGREEMENT)
            done = agree and len(last) == WINDOWS and elapsed >= floor_s
            if done or (len(last) > 1 and elapsed >= limit_s):
                return WarmUp(runs, elapsed, agree)

    def block(self, seconds: float, lead_in_s: float = 0.0) -> Block:
        """Time single runs for `seconds`, at least one: ms each.

        Untimed runs for `lead_in_s`, at least one unless it is 0, precede them: they refill the caches that
        the other models used meanwhile.
        """
        session, batch = self._session, self._batch
        begin = time.perf_counter()
        while time.perf_counter() < begin + lead_in_s:
            session.run(batch)
        figures = gpu.available(session)
        times: list[int] = []
        told: dict[str, list[float]] = {name: [] for name in figures}
        gc.disable()  # a garbage collection would be added to the time of a run
        try:
            end = time.perf_counter_ns() + int(seconds * 1e9)
            stop = 0
            while stop < end or not times:
                start = time.perf_counter_ns()
                session.run(batch)
                stop = time.perf_counter_ns()
                times.append(stop - start)
                for name in figures:
                    told[name].append(getattr(session, name))
        finally:
            gc.enable()
        return {HOST: np.array(times) / 1e6} | {name: np.array(told[name]) for name in figures}

    def stages(self, seconds: float) -> dict[str, np.ndarray]:
        """Time all stages of a batch, from uint8 images to class indices: ms of each stage in each run."""
        rows: dict[str, list[float]] = {name: [] for name in STAGES}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(rows["total"]) < STAGE_RUNS:
            t0 = time.perf_counter_ns()
            batch = normalise(self._images, self._preprocessing)
            t1 = time.perf_counter_ns()
            logits = self._session.run(batch)
            t2 = time.perf_counter_ns()
            logits.argmax(axis=1)
            t3 = time.perf_counter_ns()
            for name, value in zip(STAGES, (t1 - t0, t2 - t1, t3 - t2, t3 - t0), strict=True):
                rows[name].append(value / 1e6)
        return {name: np.array(values) for name, values in rows.items()}

    def memory(self) -> MemoryUse:
        gc.collect()
        return MemoryUse(
            self._idle_mb,
            max(self._loaded_mb, memory.peak_resident_mb()),
            memory.resident_mb() - self._warm_mb,
            gpu.device_memory(self._session),
        )

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of n images (n, H, W, 3) uint8, with n at most the batch size; a smaller batch
        is padded.
        """
        missing = len(self._images) - len(images)
        filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
        return self._session.run(normalise(filled, self._preprocessing))[: len(images)]

    def close(self) -> None:
        self._session.close()


def serve(descriptor: int) -> None:
    """Execute the commands from the pipe `descriptor` until it is closed. The first message contains the
    arguments of `Bench`, a command its name and arguments. A reply is `(result, None)` or `(None, error)`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the pipe
    connection = Connection(descriptor)
    bench, failed = None, None
    try:
        bench = Bench(*connection.recv())  # before the first command, so that workers start in parallel
    except EOFError:
        return
    except Exception as error:
        failed = _portable(error)
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        if bench is None:
            connection.send((None, failed))
            continue
        try:
            connection.send((getattr(bench, name)(*arguments), None))
        except Exception as error:
            connection.send((None, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error as an exception that can be pickled."""
    if isinstance(error, SlimdeployError):
        return error
    missing = missing_library(error) if isinstance(error, ModuleNotFoundError) else None
    return missing or SlimdeployError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
