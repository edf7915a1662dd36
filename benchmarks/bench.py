"""Models side by side: accuracy, latency, memory and power in one run, as one `bench` result."""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from slimdeploy.benchmarks import accuracy, conditions, results, rows
from slimdeploy.benchmarks.images import Images, LoadImages, images_for
from slimdeploy.benchmarks.latency import TimingOptions, time_models
from slimdeploy.benchmarks.nvml import Nvml, find_nvml
from slimdeploy.benchmarks.power import Meter, Sensor, find_sensor
from slimdeploy.benchmarks.process import Worker, settle
from slimdeploy.benchmarks.rows import Measured
from slimdeploy.benchmarks.subjects import Subject, baseline_of, unique
from slimdeploy.benchmarks.worker import Opened

STAGES_S = 1.0


@dataclass(frozen=True)
class BenchOptions:
    """`threads` is recorded only: the sessions were given it."""

    batches: tuple[int, ...] = (1, 64)
    timing: TimingOptions = field(default_factory=TimingOptions)
    threads: int | None = None


@dataclass(frozen=True)
class Surroundings:
    """What a run is given beside its models. No `images`, no accuracy; no `sensor`, no power."""

    images: LoadImages | None = None
    sensor: Sensor | None = None
    nvml: Nvml | None = None
    progress: Callable[[str], None] = lambda message: None


def find_surroundings(images: LoadImages | None, progress: Callable[[str], None]) -> Surroundings:
    """This machine's own sensors. Images are read once for each size."""
    nvml = find_nvml()
    return Surroundings(functools.cache(images) if images else None, find_sensor(nvml=nvml), nvml, progress)


def measure(
    subjects: Sequence[Subject],
    options: BenchOptions,
    around: Surroundings,
    *,
    command: Sequence[str] = ("slimdeploy", "bench"),
) -> dict[str, Any]:
    """Measure `subjects`, the first being the baseline; returns a `bench` result (schemas/bench-1.json).

    Raises SlimdeployError where a model can't be opened, fed or run.
    """
    subjects = unique(subjects)
    before = _state(around.nvml)
    # Accuracy is the same at every batch size, and quickest at the largest.
    measured = {
        b: _measure_batch(subjects, b, options, around, b == max(options.batches)) for b in options.batches
    }
    after = _state(around.nvml)
    evaluations = [found.evaluation for found in measured[max(options.batches)]]
    all_rows, comparisons = [], []
    for batch, found in measured.items():
        for one, evaluation in zip(found, evaluations, strict=True):
            one.evaluation = evaluation
        own = [
            rows.row(subject, one, batch=batch, ci=options.timing.ci)
            for subject, one in zip(subjects, found, strict=True)
        ]
        all_rows += own
        for i in range(len(subjects)):
            base = baseline_of(i, subjects)
            if base is not None:
                comparisons.append(
                    rows.comparison(own[base], own[i], found[base], found[i], ci=options.timing.ci)
                )
    machine = conditions.machine()
    for one in measured[max(options.batches)]:
        machine["versions"] |= one.opened.versions
    missing = list(before.pop("missing"))
    after.pop("missing")
    if around.nvml:
        machine["gpu"] = around.nvml.machine()
    if around.sensor is None:
        missing.append("power")
    return results.document(
        "bench",
        command=shlex.join(command),
        machine=machine,
        options={"batches": list(options.batches), "threads": options.threads, **asdict(options.timing)},
        conditions={"before": before, "after": after, "missing": missing},
        remarks=conditions.remarks(before, after, cores=machine["cores"]),
        rows=all_rows,
        comparisons=comparisons,
        guards=[],
    )


def _measure_batch(
    subjects: Sequence[Subject], batch: int, options: BenchOptions, around: Surroundings, evaluate: bool
) -> list[Measured]:
    """Start a process for each subject, time them against each other, then take what they do alone."""
    progress = around.progress
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        for subject in subjects:
            progress(f"loading {subject.label}")
            workers.append(stack.enter_context(Worker(subject.label, subject.opener, subject.modules)))
        opened = [worker.call("open", batch) for worker in workers]
        data = [_data(one, worker.label, around.images) for one, worker in zip(opened, workers, strict=True)]
        for worker, own in zip(workers, data, strict=True):
            if own is not None:  # as many as the batch takes, from the start again where there are too few
                worker.call("use_images", np.resize(own.images[:batch], (batch, *own.images.shape[1:])))
        meter = _meter(around, workers)
        timings = time_models(
            workers,
            options.timing,
            around=meter.around if meter else None,
            progress=lambda message: progress(f"batch {batch}: {message}"),
        )
        found = []
        for worker, one, timing in zip(workers, opened, timings, strict=True):
            progress(f"batch {batch}: stages of {worker.label}")
            memory = worker.call("memory")  # before anything but the timed runs could raise the peak
            if around.nvml and (used := around.nvml.used_mb(worker.pid)) is not None:
                memory.device["process"] = used
            settle(workers)
            stages = worker.call("stages", min(STAGES_S, options.timing.seconds), options.timing.minimum_runs)
            power = meter.figures(worker.label, batch=batch) if meter else None
            found.append(Measured(one, timing, stages, memory, power))
        for worker, own, one in zip(workers, data, found, strict=True):
            if evaluate and own is not None:
                progress(f"accuracy of {worker.label} on {len(own.labels)} images")
                predict = functools.partial(worker.call, "logits")
                one.evaluation = accuracy.evaluate(predict, own.images, own.labels, batch=batch)
        return found


def _data(opened: Opened, label: str, load: LoadImages | None) -> Images | None:
    """None where there are no images, or the model doesn't say how to feed it."""
    if load is None or opened.preprocessing is None or opened.class_names is None:
        return None
    return images_for(opened.preprocessing, opened.class_names, label, load)


def _meter(around: Surroundings, workers: Sequence[Worker]) -> Meter | None:
    if around.sensor is None:
        return None
    meter = Meter(around.sensor)
    settle(workers)
    meter.measure_idle()
    return meter


def _state(nvml: Nvml | None) -> dict[str, Any]:
    return conditions.state() | ({"gpu": nvml.state()} if nvml else {})
