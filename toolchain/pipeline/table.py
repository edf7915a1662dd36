"""The result of a run as a table: one row per step, with accuracy, costs and measured speed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from slimdeploy.toolchain.formatting import digits, grid, percent, short
from slimdeploy.toolchain.measure import bench_table, results, statistics
from slimdeploy.toolchain.pipeline.recipe import Recipe
from slimdeploy.toolchain.report.steps import COLUMNS, latency_rows, step_row


@dataclass(frozen=True)
class TableResult:
    """Path of the table."""

    table: Path

    def to_json(self) -> dict[str, Any]:
        return {"table": str(self.table)}


def table_stage(recipe: Recipe, stages: Mapping[str, Any], output: Path) -> TableResult:
    """Write the result of a run to `output`, from the results of its stages."""
    results.write(output, result_table(recipe, stages))
    return TableResult(output)


def result_table(recipe: Recipe, stages: Mapping[str, Any]) -> dict[str, Any]:
    """A `table` document with COLUMNS."""
    rows = [step_row(step, accuracy, **costs) for step, accuracy, costs in _steps(recipe, stages)]
    rows += latency_rows(stages["bench"])
    return results.document(
        "table",
        command=shlex.join(["slimdeploy", *sys.argv[1:]]),
        machine=stages["bench"]["machine"],
        title=f"{recipe.name}: {recipe.network}, on {_data(recipe, stages)}",
        columns=COLUMNS,
        rows=rows,
        remarks=[*_accuracy_doubt(stages), *bench_table.doubts(stages["bench"])],
    )


def _steps(recipe: Recipe, stages: Mapping[str, Any]) -> list[tuple[str, float, dict[str, Any]]]:
    """The step, the test accuracy after it, and parameters and MACs of the network at that point."""
    full, slim = _costs(stages["pruned"], "before"), _costs(stages["pruned"], "after")
    steps = [("trained", stages["train"]["accuracy"]["test"], full)]
    for name, stage in stages.items():
        if name == "pruned" or name.startswith("compare-"):
            title = recipe.prune.describe() if name == "pruned" else f"pruned {float(name[8:]):.0%}"
            steps += [
                (f"{title}, {key.replace('_', ' ')}", accuracy, _costs(stage, "after"))
                for key, accuracy in stage["accuracy"].items()
                if key.startswith("after") or key == "final"
            ]
    steps.append(("fine-tuned", stages["finetune"]["accuracy"]["test"], slim))
    if int8 := stages.get("calibrate"):
        steps.append((f"INT8, {int8['method']}", int8["parity"]["accuracy"]["quantised"], slim))
    return steps


def _costs(stage: dict[str, Any], side: str) -> dict[str, Any]:
    return {"params": stage["params"][side], "macs": stage["macs"][side]}


def _accuracy_doubt(stages: Mapping[str, Any]) -> list[str]:
    final = next((row for row in stages["bench"]["rows"] if row["model"].endswith("final.onnx")), None)
    if final is None or not final["images"]:
        return []
    images, accuracy = final["images"], final["accuracy"]
    low, high = statistics.proportion_interval(round(accuracy * images), images)
    known = f"±{50 * (high - low):.1f} points"
    return [f"95 % interval of an accuracy of {percent(accuracy)} on {images:,} test images: {known}"]


def _data(recipe: Recipe, stages: Mapping[str, Any]) -> str:
    limit = f", {recipe.train.limit:,} training images" if recipe.train.limit else ""
    return f"{recipe.data.name}{limit}, {stages['bench']['rows'][0]['images']:,} test images"


def table_text(table: dict[str, Any]) -> RenderableType:
    """The table for a terminal."""
    steps = [row for row in table["rows"] if row["batch"] is None]
    speeds = [row for row in table["rows"] if row["batch"] is not None]
    first = grid(
        ["step", "accuracy", "parameters", "MACs"],
        [[r["step"], percent(r["accuracy"]), short(r["params"]), short(r["macs"])] for r in steps],
        title=table["title"],
    )
    second = grid(
        ["onnxruntime", "MiB", "accuracy", "batch", "p50 ms", "speed-up [95 %]"],  # fits in 80 characters
        [
            [
                row["step"],
                "" if row["file_mb"] is None else _fixed(row["file_mb"], 1),
                "" if row["accuracy"] is None else percent(row["accuracy"]),
                str(row["batch"]),
                f"{_noisy(row)}{_fixed(row['latency_p50_ms'], 2)}",
                "" if row["speedup"] is None else _interval(row),
            ]
            for row in speeds
        ],
    )
    return Group(first, second, *bench_table.doubt_lines(table["remarks"], any(map(_noisy, speeds))))


def _noisy(row: dict[str, Any]) -> str:
    return "" if row["interval_reached"] else bench_table.NOISY


def _interval(row: dict[str, Any]) -> str:
    speedup, low, high = map(digits, (row["speedup"], row["speedup_ci95_low"], row["speedup_ci95_high"]))
    return f"{_noisy(row)}{speedup}× [{low}, {high}]"


def _fixed(value: float, decimals: int) -> str:
    """With this number of decimals; a small value with three significant digits."""
    return f"{value:.{decimals}f}" if value >= 10.0 ** (1 - decimals) else digits(value)
