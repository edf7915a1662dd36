from __future__ import annotations

import io

import rich.console

from slimdeploy.toolchain.pipeline.table import table_text
from slimdeploy.toolchain.report.steps import COLUMNS


def shown(table) -> str:
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(table_text(table))
    return console.export_text()


def row(**given):
    return {
        **dict.fromkeys(COLUMNS),
        "step": "final.int8.onnx",
        "accuracy": 0.9,
        "params": 10,
        "macs": 20,
        **given,
    }


def test_a_figure_that_is_not_known_well_says_so():
    speed = {
        "batch": 1,
        "latency_p50_ms": 1.5,
        "speedup": 127.0,
        "speedup_ci95_low": 90.0,
        "speedup_ci95_high": 160.0,
        "file_mb": 89.7,
    }
    noisy = row(**speed, realised=2.0, interval_reached=False)
    remark = "final.int8.onnx, batch 1: noisy: the median is known to ±25.8%"
    text = shown({"title": "t", "rows": [row(), noisy], "remarks": ["the machine was busy before", remark]})
    assert "~1.50" in text
    assert "~127× [90.0, 160]" in text  # in one line of a terminal 80 characters wide
    assert "! the machine was busy before" in text
    assert f"! {remark}" in text
    known = row(**speed | {"speedup": 8.7, "speedup_ci95_low": 7.996, "speedup_ci95_high": 12.34})
    assert "~8.70× [8.00, 12.3]" in shown({"title": "t", "rows": [row(), known], "remarks": []})
    steady = row(**speed, realised=2.0, interval_reached=True)
    assert "~" not in shown({"title": "t", "rows": [row(), steady], "remarks": []})


def test_small_figures_keep_their_digits():
    small = {"latency_p50_ms": 0.01534, "file_mb": 0.02671, "speedup": 2.0, "speedup_ci95_low": 1.9}
    known = row(**small, batch=1, speedup_ci95_high=2.1, interval_reached=True)
    text = shown({"title": "t", "rows": [row(), known], "remarks": []})
    assert "0.0153" in text
    assert "0.0267" in text
