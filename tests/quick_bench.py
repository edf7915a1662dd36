"""A stand-in for the pipeline's bench, where a test is about something else: the times follow the MACs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.library.bench import BenchResult
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.pipeline import plan


def bench(recipe: Any, models: list[Path], output: Path, threads: int | None) -> BenchResult:
    """Writes what the table of a run and a sweep's row are made from."""
    rows = [_row(model) for model in models]
    timing = {"seconds": 1.0, "ci": 0.1, "seed": 0, "warm_up_floor_s": 0.1}
    document = results.document(
        "bench", command="-", options={"batches": [2], "threads": threads, **timing},
        conditions={"before": {}, "after": {}, "missing": []}, remarks=[], rows=rows,
        comparisons=[_compared(rows[0], row) for row in rows[1:]], guards=[],
    )  # fmt: skip
    results.write(output, document)
    return BenchResult(document)


def _compared(first: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    speedup = first["latency_ms"]["p50"] / row["latency_ms"]["p50"]
    return {
        "baseline": first["model"], "baseline_backend": "onnxruntime-cpu", "model": row["model"],
        "backend": "onnxruntime-cpu", "precision": "fp32", "batch": 2, "speedup": speedup,
        "ci95": [0.9 * speedup, 1.1 * speedup], "interval_reached": True, "mac_ratio": 1.0,
        "realised": 1.0, "accuracy_difference": None,
    }  # fmt: skip


def _row(model: Path) -> dict[str, Any]:
    size = len(artifacts.sidecar(model).read_bytes()) + model.stat().st_size
    p50 = size / 1e5
    time = dict.fromkeys(("mean", "min", "p50", "p90", "p95", "p99", "p99.9", "max"), p50) | {"runs": 2}
    memory = {"file": model.stat().st_size / 2**20} | dict.fromkeys(
        ("weights", "idle", "peak", "peak_above_idle", "growth"), 1.0
    )
    return {
        "model": str(model), "sha256": None, "backend": "onnxruntime-cpu", "precision": "fp32", "batch": 2,
        "latency_ms": time | {"ci95": [0.9 * p50, 1.1 * p50]}, "interval_reached": True, "half_width": 0.1,
        "images_per_second": 2000 / p50, "stages_ms": {}, "gpu": None, "memory_mb": memory | {"device": {}},
        "power": None, "accuracy": 0.5, "accuracy_ci95": [0.4, 0.6], "loss": 1.0, "images": 24,
        "params": size, "macs": size, "warm_up": {"runs": 1, "seconds": 0.1, "settled": True}, "remarks": [],
        "samples_ms": [[p50], [p50]],
    }  # fmt: skip


def install() -> None:
    """Let the pipeline use it from now on."""
    plan.bench_stage = bench  # type: ignore[assignment]
