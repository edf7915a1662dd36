from __future__ import annotations

import math

import numpy as np
import pytest

from slimdeploy.benchmarks import interval_check
from slimdeploy.tests.small_network import models, small_checkpoint
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results

__all__ = ["models", "small_checkpoint"]


def rows(logs: np.ndarray, launches: int = 5) -> list[dict]:
    return [
        {"batch": 1, "condition": "idle", "run": i // launches, "speedup": math.exp(value), "p50_ms": 1.0,
         "other_work": 0.0}
        for i, value in enumerate(logs)
    ]  # fmt: skip


def test_an_interval_of_independent_launches_misses_the_truth_in_5_of_100_runs():
    runs = np.random.default_rng(0).normal(0, 0.02, (2000, 10))
    assert interval_check.excluded(runs) / 2000 == pytest.approx(0.05, abs=0.015)
    assert interval_check.excluded(runs - 0.1) == 2000


def test_the_remarks_count_at_the_length_measured_and_at_those_of_bench():
    # Speed-ups of ±1 % in turn: no interval excludes 1, all of them exclude 1.03.
    logs = np.tile([0.01, -0.01], 50)
    assert interval_check.document(rows(logs), 1.03)["remarks"] == [
        f"batch 1, idle, {launches} launches: the interval excludes 1 in 0 of {runs} runs for the copy, in "
        f"{runs} for a copy × 1.03"
        for launches, runs in ((5, 20), (10, 10), (20, 5), (30, 3))
    ]


def test_a_run_is_a_row_per_launch_and_existing_rows_are_kept(tmp_path, models):
    output = tmp_path / "check.json"

    def check(*more: str) -> list[dict]:
        words = (models["fp32"], "--runs", 1, "--launches", 2, *more, "-o", output)
        interval_check.main.main([str(word) for word in words], standalone_mode=False)
        return results.read(output, "table")["rows"]

    first = check()
    assert [(row["batch"], row["condition"], row["run"]) for row in first] == [(1, "idle", 0)] * 2
    assert all(0.2 < row["speedup"] < 5 for row in first)
    second = check("--batch", "2")
    assert second[:2] == first
    assert [row["batch"] for row in second[2:]] == [2, 2]
    assert check() == second, "the runs asked for are there"


def test_a_table_of_another_kind_is_refused_and_kept(tmp_path, models):
    output = tmp_path / "other.json"
    results.write(
        output, results.document("table", command="-", title="t", columns={"a": "b"}, rows=[{"a": 1}])
    )
    before = output.read_bytes()
    with pytest.raises(SlimdeployError, match="has other columns"):
        interval_check.main.main([str(models["fp32"]), "-o", str(output)], standalone_mode=False)
    assert output.read_bytes() == before
