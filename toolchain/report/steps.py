"""Rows of a run's table: one per step, with the network's size or its speed."""

from __future__ import annotations

from typing import Any

from slimdeploy.toolchain.formatting import file_name

COLUMNS = {
    "step": "what was done",
    "accuracy": "test accuracy, 0 to 1",
    "params": "parameters",
    "macs": "multiply-accumulates for one image",
    "file_mb": "ONNX file, MiB",
    "batch": "images in a call, for the figures to the right",
    "latency_p50_ms": "median latency on onnxruntime, ms",
    "speedup": "median latency of the original over this one's",
    "speedup_ci95_low": "lower end of the 95 % interval of the speed-up",
    "speedup_ci95_high": "upper end of it",
    "realised": "speed-up over MAC ratio",
    "interval_reached": "whether the 95 % intervals of latency and speed-up are as narrow as asked for",
}


def step_row(step: str, accuracy: float | None, *, params: int | None, macs: int | None) -> dict[str, Any]:
    """The network after a step."""
    return {**dict.fromkeys(COLUMNS), "step": step, "accuracy": accuracy, "params": params, "macs": macs}


def latency_rows(bench: dict[str, Any]) -> list[dict[str, Any]]:
    """Each model of a `bench` result at each batch size."""
    return [_latency_row(row, bench) for row in bench["rows"]]


def _latency_row(row: dict[str, Any], bench: dict[str, Any]) -> dict[str, Any]:
    """One model at one batch size; the comparison is absent for the original."""
    found = next(
        (c for c in bench["comparisons"] if (c["model"], c["batch"]) == (row["model"], row["batch"])), None
    )
    name = file_name(row["model"])
    filled = {
        **step_row(name, row["accuracy"], params=row["params"], macs=row["macs"]),
        "file_mb": row["memory_mb"]["file"],
        "batch": row["batch"],
        "latency_p50_ms": row["latency_ms"]["p50"],
        "interval_reached": row["interval_reached"],
    }
    if found:
        low, high = found["ci95"]
        filled |= {"speedup": found["speedup"], "speedup_ci95_low": low, "speedup_ci95_high": high}
        filled["realised"] = found["realised"]
        filled["interval_reached"] &= found["interval_reached"]
    return filled
