"""Compare models: accuracy, latency, memory and power in one `bench` result."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from slimdeploy.toolchain.measure import accuracy, conditions, results, rows
from slimdeploy.toolchain.measure.labelled_images import Images, LoadImages, images_for
from slimdeploy.toolchain.measure.nvml import Nvml, find_nvml
from slimdeploy.toolchain.measure.options import MeasureOptions, TimingOptions
from slimdeploy.toolchain.measure.power import Meter, Sensor, SensorError, find_sensor
from slimdeploy.toolchain.measure.process import Worker, launched, settle
from slimdeploy.toolchain.measure.rows import Measured
from slimdeploy.toolchain.measure.subjects import Subject, compared, unique
from slimdeploy.toolchain.measure.timing import time_models

STAGES_S = 1.0
POWER_S = 2.0


@dataclass(frozen=True)
class Surroundings:
    """Inputs of a run besides its models. Without `images` no accuracy, without `sensor` no power is
    measured.
    """

    images: LoadImages | None = None
    sensor: Sensor | None = None
    nvml: Nvml | None = None
    progress: Callable[[str], None] = lambda message: None


def find_surroundings(images: LoadImages | None, progress: Callable[[str], None]) -> Surroundings:
    """The sensors of this machine. Images are read once per size."""
    nvml = find_nvml()
    return Surroundings(functools.cache(images) if images else None, find_sensor(nvml=nvml), nvml, progress)


def measure(
    subjects: Sequence[Subject],
    options: MeasureOptions,
    around: Surroundings,
    *,
    command: Sequence[str] = ("slimdeploy", "bench"),
) -> dict[str, Any]:
    """Measure `subjects`, the first of which is the baseline; `options.threads` is only recorded, the
    sessions were given it. Returns a `bench` result (schemas/bench-1.json).

    Raises SlimdeployError if a model can't be opened or run.
    """
    subjects = unique(subjects)
    before = _state(around.nvml)
    # Accuracy doesn't depend on the batch size, and is fastest at the largest.
    measured = {
        b: _measure_batch(subjects, b, options, around, b == max(options.batches)) for b in options.batches
    }
    after = _state(around.nvml)
    all_rows, comparisons = [], []
    for batch, found in measured.items():
        for one, evaluated in zip(found, measured[max(options.batches)], strict=True):
            one.evaluation, one.images_sha256 = evaluated.evaluation, evaluated.images_sha256
        own = [
            rows.row(subject, one, batch=batch, ci=options.ci)
            for subject, one in zip(subjects, found, strict=True)
        ]
        all_rows += own
        for base, i in compared(subjects):
            comparisons.append(rows.comparison(own[base], own[i], found[base], found[i], ci=options.ci))
    machine = conditions.machine()
    for one in measured[max(options.batches)]:
        machine["versions"] |= one.opened.versions
    missing = list(before.pop("missing"))
    after.pop("missing")
    during = conditions.during([one.timing.others for found in measured.values() for one in found])
    if around.nvml:
        machine["gpu"] = around.nvml.machine()
    if not all(row["power"] for row in all_rows):
        missing.append("power")
    return results.document(
        "bench",
        command=shlex.join(command),
        machine=machine,
        options=_recorded(options),
        conditions={"before": before, "during": during, "after": after, "missing": missing},
        remarks=conditions.remarks(before, after, cores=machine["cores"], during=during),
        rows=all_rows,
        comparisons=comparisons,
        guards=[],
    )


def _recorded(options: MeasureOptions) -> dict[str, Any]:
    timing = {f.name: getattr(options, f.name) for f in fields(TimingOptions)}
    return {"batches": list(options.batches), "threads": options.threads, **timing}


def _measure_batch(
    subjects: Sequence[Subject], batch: int, options: MeasureOptions, around: Surroundings, evaluate: bool
) -> list[Measured]:
    """Time all subjects; in the last launch also measure memory, stages, power and accuracy of each."""

    def progress(text: str) -> None:
        around.progress(f"batch {batch}: {text}")

    @contextlib.contextmanager
    def launch(order: Sequence[int]) -> Iterator[list[Worker]]:
        with launched(subjects, batch, order) as workers:
            for worker in workers:
                _use_images(worker, batch, around.images)
            yield workers

    found: list[Measured] = []
    meter = _meter(around, progress)

    def last(workers: list[Worker]) -> None:
        found.extend(_alone(worker, workers, options, around, progress) for worker in workers)
        for worker, one in zip(workers, found, strict=True):
            if meter:
                settle(workers)
                progress(f"power of {worker.label}")
                seconds = min(POWER_S, options.seconds)
                with _sensor_may_fail(progress):
                    one.power = meter.figures(worker, batch=batch, seconds=seconds)
            if evaluate:
                _evaluate(one, worker, batch, around.images, progress)

    timings = time_models(
        launch, len(subjects), options, pairs=compared(subjects), last=last, progress=progress
    )
    for one, timing in zip(found, timings, strict=True):
        one.timing = timing
    return found


def _use_images(worker: Worker, batch: int, load: LoadImages | None) -> None:
    own = _data(worker, load)
    if own is not None:  # a full batch; images are repeated if there are too few
        worker.call("use_images", np.resize(own.images[:batch], (batch, *own.images.shape[1:])))


def _alone(
    worker: Worker,
    workers: Sequence[Worker],
    options: MeasureOptions,
    around: Surroundings,
    progress: Callable[[str], None],
) -> Measured:
    """Memory and stages of one of the `workers`."""
    progress(f"stages of {worker.label}")
    memory = worker.call("memory")  # before anything except the timed runs can raise the peak
    if around.nvml and (used := around.nvml.used_mb(worker.pid)) is not None:
        memory.device["process"] = used
    settle(workers)
    seconds = min(STAGES_S, options.seconds)
    stages = worker.call("stages", seconds)
    return Measured(worker.opened, stages=stages, memory=memory)


def _evaluate(
    one: Measured, worker: Worker, batch: int, load: LoadImages | None, progress: Callable[[str], None]
) -> None:
    own = _data(worker, load)
    if own is None:
        return
    progress(f"accuracy of {worker.label} on {len(own.labels)} images")
    digest = hashlib.sha256(own.labels.astype(np.int64).tobytes())

    def predict(images: np.ndarray) -> np.ndarray:
        digest.update(images.tobytes())
        return worker.call("logits", images)

    one.evaluation = accuracy.evaluate(predict, own.images, own.labels, batch=batch)
    one.images_sha256 = digest.hexdigest()


def _data(worker: Worker, load: LoadImages | None) -> Images | None:
    """None if there are no images, or the model contains no preprocessing."""
    opened = worker.opened
    if load is None or opened.preprocessing is None or opened.class_names is None:
        return None
    return images_for(opened.preprocessing, opened.class_names, worker.label, load)


def _meter(around: Surroundings, progress: Callable[[str], None]) -> Meter | None:
    if around.sensor is None:
        return None
    meter = Meter(around.sensor)
    with _sensor_may_fail(progress):
        meter.measure_idle()  # before any model is loaded
        return meter
    return None


@contextlib.contextmanager
def _sensor_may_fail(progress: Callable[[str], None]) -> Iterator[None]:
    """Go on without the power that the block would have measured, if the sensor fails."""
    try:
        yield
    except SensorError as error:
        progress(f"no power: {error}")


def _state(nvml: Nvml | None) -> dict[str, Any]:
    return conditions.state() | ({"gpu": nvml.state()} if nvml else {})
