"""`bench`'s tables in a terminal of 80 columns."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from slimdeploy.toolchain.measure.bench_table import bench_table

ROW: dict[str, Any] = {
    "backend": "onnxruntime-cpu", "precision": "fp32", "batch": 64, "interval_reached": False, "gpu": None,
    "latency_ms": {"p50": 1234.5, "p90": 1300.0, "p99": 1400.1, "p99.9": 2000.0}, "images_per_second": 1e4,
    "memory_mb": {"file": 89.7, "peak_above_idle": 1234.5}, "power": None, "accuracy": 0.9039,
    "params": 23_513_162, "macs": 325_799_936, "remarks": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("speedup", "interval", "expected"),
    [(388.2, (59.77, 2522.18), "~388×"), (1.3, (1.2, 1.4), "~1.30×"), (25.31, (24.9, 25.7), "~25.3×")],
)
def test_nothing_is_cut_off(speedup: float, interval: tuple[float, float], expected: str) -> None:
    compared = {
        "model": "final.onnx", "baseline": "original.onnx", "batch": 64, "speedup": speedup, "ci95": interval,
        "interval_reached": False, "mac_ratio": 12.95, "realised": 29.99,
        "accuracy_difference": {"value": -0.1813, "ci95": (-0.2365, -0.1234)},
    }  # fmt: skip
    rows = [{**ROW, "model": name} for name in ("original.onnx", "final.onnx")]
    found = {
        "rows": rows,
        "comparisons": [compared],
        "remarks": [],
        "guards": [],
        "conditions": {"missing": []},
    }
    with (console := Console(width=80)).capture() as captured:
        console.print(bench_table(found))
    text = captured.get()
    assert all(part in text for part in (expected, "-18.13 (-23.65…-12.34)", "12.9×", "30.0", "1234.5"))
    assert "…" not in text.replace("-23.65…-12.34", "")
