"""Measurements as the rows and comparisons of a `bench` result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.measure import gpu, statistics
from slimdeploy.toolchain.measure import process_memory as memory
from slimdeploy.toolchain.measure.accuracy import Evaluation
from slimdeploy.toolchain.measure.subjects import Subject
from slimdeploy.toolchain.measure.timing import Timing
from slimdeploy.toolchain.measure.worker import HOST, MemoryUse, Opened

LEAK_SHARE, LEAK_MB = 0.05, 4.0
"""Memory growth during timing that is reported: this share of the peak, and at least this amount."""


@dataclass
class Measured:
    """All measurements of one subject at one batch size."""

    opened: Opened
    stages: dict[str, np.ndarray]
    memory: MemoryUse
    timing: Timing = field(default_factory=Timing)
    power: dict[str, Any] | None = None
    evaluation: Evaluation | None = None
    images_sha256: str | None = None
    """Hash of the labels and pixels of the test images, as the model gets them before normalisation."""


def row(subject: Subject, found: Measured, *, batch: int, ci: float) -> dict[str, Any]:
    """The row of one subject; `ci` is the requested relative half-width."""
    opened, timing, evaluation = found.opened, found.timing, found.evaluation
    host = timing.samples()
    latency = statistics.summary(host)
    bounds = statistics.interval(timing.by_launch(), latency["p50"])
    width = statistics.half_width(bounds, latency["p50"])
    return {
        "model": subject.label if subject.label else subject.model,
        "sha256": artifacts.sha256_file(subject.path) if subject.path else None,
        "backend": opened.backend,
        "precision": opened.precision,
        "batch": batch,
        "latency_ms": latency | {"ci95": list(bounds), "runs": len(host)},
        "interval_reached": width <= ci,
        "half_width": width,
        "images_per_second": batch * 1000 / latency["mean"],
        "stages_ms": {name: _brief(values) for name, values in found.stages.items()},
        "gpu": _gpu(timing),
        "memory_mb": _memory(subject, opened, found.memory),
        "power": found.power,
        "accuracy": evaluation.accuracy if evaluation else None,
        "accuracy_ci95": list(evaluation.interval) if evaluation else None,
        "loss": evaluation.loss if evaluation else None,
        "images": evaluation.images if evaluation else 0,
        "images_sha256": found.images_sha256,
        "params": opened.params,
        "macs": opened.macs,
        "warm_up": _warm_up(timing),
        "remarks": _remarks(found, width, ci),
        "launches": [len(launch) for launch in timing.launches],
        "samples_ms": [np.round(block[HOST], 5).tolist() for block in timing.blocks],
    }


def comparison(
    base_row: dict[str, Any], model_row: dict[str, Any], base: Measured, model: Measured, *, ci: float
) -> dict[str, Any]:
    """The comparison of `model` with `base`: the speed-up is the ratio of median latencies, base ÷ model,
    averaged over rounds and launches.
    """
    found = statistics.ratio(base.timing.by_launch(), model.timing.by_launch())
    speedup, bounds = math.exp(found.mean), found.interval()
    mac_ratio = None
    if base.opened.macs and model.opened.macs:
        mac_ratio = base.opened.macs / model.opened.macs
    difference = None
    if base.evaluation and model.evaluation:
        points, interval = statistics.paired_difference(base.evaluation.correct, model.evaluation.correct)
        difference = {"value": points, "ci95": list(interval)}
    return {
        "baseline": base_row["model"],
        "baseline_backend": base_row["backend"],
        "model": model_row["model"],
        "backend": model_row["backend"],
        "precision": model_row["precision"],
        "batch": model_row["batch"],
        "speedup": speedup,
        "ci95": list(bounds),
        "interval_reached": statistics.half_width(bounds, speedup) <= ci,
        "mac_ratio": mac_ratio,
        "realised": speedup / mac_ratio if mac_ratio else None,
        "accuracy_difference": difference,
    }


def _brief(samples: np.ndarray) -> dict[str, float]:
    full = statistics.summary(samples)
    return {name: full[name] for name in ("mean", "p50", "p90", "p99")}


def _warm_up(timing: Timing) -> dict[str, Any]:
    """All launches together; `settled` if most launches did."""
    done = timing.warm_ups
    settled = 2 * sum(one.settled for one in done) > len(done)
    return {
        "runs": sum(one.runs for one in done),
        "seconds": sum(one.seconds for one in done),
        "settled": settled,
    }


def _gpu(timing: Timing) -> dict[str, Any] | None:
    """Times from CUDA events, run by run; None for a session on the CPU."""
    told = {name: samples for name in gpu.RUN_FIGURES if len(samples := timing.samples(name))}
    if not told:
        return None
    figures = {name: _brief(samples) for name, samples in told.items()}
    share = gpu.enqueue_ratio(figures)
    return {
        **figures,
        "enqueue_ratio": share,
        "launch_bound": share is not None and share >= gpu.LAUNCH_BOUND,
    }


def _memory(subject: Subject, opened: Opened, used: MemoryUse) -> dict[str, Any]:
    return {
        "file": subject.path.stat().st_size / memory.MB if subject.path else None,
        "weights": memory.weights_mb(opened.params, opened.precision),
        "idle": used.idle,
        "peak": used.peak,
        "peak_above_idle": used.peak - used.idle,
        "growth": used.growth,
        "device": used.device,
    }


def _remarks(found: Measured, width: float, ci: float) -> list[str]:
    """Warnings about the row, one sentence each."""
    said = []
    if width > ci:
        said.append(f"noisy: the median is known to ±{width:.1%}, not to the requested ±{ci:.1%}")
    warm_up = _warm_up(found.timing)
    if not warm_up["settled"]:
        each = warm_up["seconds"] / len(found.timing.warm_ups)
        said.append(f"still changing after {each:.1f} s of warm-up in most launches")
    if found.memory.growth > max(LEAK_MB, LEAK_SHARE * found.memory.peak):
        said.append(f"memory grew by {found.memory.growth:.1f} MB during a single launch")
    return said
