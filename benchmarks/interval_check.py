"""Check the coverage of `bench`'s 95 % interval, and its sensitivity to small differences.

    python -m slimdeploy.benchmarks.interval_check final.onnx --batch 1 --runs 100
    --output benchmarks/results/interval-check.json

Measures an ONNX file against a byte-identical copy, as `bench` does, `--runs` times with `--launches`
launches each. The interval of the copy's speed-up should exclude 1 in 5 of 100 runs; that of a slower copy,
whose times are those of the copy × `--slower`, should exclude 1 as often as possible. Each launch is a row of
the output, written when its run is done; the rows of a file that exists are kept. Because launches are
independent, those of consecutive runs are also joined to longer runs.
"""

from __future__ import annotations

import functools
import math
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results, statistics
from slimdeploy.toolchain.measure.options import LOOKS, TimingOptions
from slimdeploy.toolchain.measure.process import launched
from slimdeploy.toolchain.measure.subjects import subjects_for
from slimdeploy.toolchain.measure.timing import Timing, time_models
from slimdeploy.toolchain.runtime.session import SessionOptions

COLUMNS = {
    "batch": "batch size",
    "condition": "what else the machine did",
    "run": "number of the run",
    "speedup": "of the copy over the original, by construction 1: mean over the rounds of this launch",
    "p50_ms": "median latency of the original in this launch",
    "other_work": "average number of processors used by other programs",
}
ANY_CI = 1e9
"""An interval that every measurement reaches, so that a run ends after its first check."""


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--runs", type=int, default=100, show_default=True)
@click.option("--launches", type=int, default=TimingOptions.launches, show_default=True)
@click.option("--slower", type=float, default=1.03, show_default=True, help="Factor on the copy's times.")
@click.option("--condition", default="idle", show_default=True, help="What else the machine does.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    model: Path,
    batch: int,
    threads: int,
    runs: int,
    launches: int,
    slower: float,
    condition: str,
    output: Path,
) -> None:
    """Measure MODEL against a copy of itself, repeatedly."""
    rows = list(results.read(output, "table")["rows"]) if output.is_file() else []
    if any(set(row) != set(COLUMNS) for row in rows):
        raise SlimdeployError(
            f"{output} has other columns than {', '.join(COLUMNS)}: choose another --output"
        )
    done = {row["run"] for row in rows if (row["batch"], row["condition"]) == (batch, condition)}
    # As long per launch as a `bench` with the default options.
    seconds = TimingOptions().launch_s * LOOKS * launches
    with tempfile.TemporaryDirectory(prefix="slimdeploy-interval-check-") as folder:
        copy = Path(shutil.copy(model, Path(folder) / "copy.onnx"))
        options = SessionOptions(device="cpu", threads=threads)
        launch = functools.partial(launched, subjects_for([model, copy], ["onnxruntime"], options), batch)
        for number in sorted(set(range(runs)) - done):
            timing = TimingOptions(seconds=seconds, launches=launches, ci=ANY_CI, seed=number)
            kind = {"batch": batch, "condition": condition, "run": number}
            rows += [kind | values for values in _launches(*time_models(launch, 2, timing))]
            results.write(output, document(rows, slower))
            print(f"batch {batch}, {condition}: run {number} of {runs}", file=sys.stderr)


def _launches(original: Timing, copy: Timing) -> list[dict[str, Any]]:
    """The rows of a run."""
    first, second = statistics.levels(original.by_launch()), statistics.levels(copy.by_launch())
    others: Sequence[float | None] = original.others or [None] * len(first)
    return [
        {"speedup": math.exp(a - b), "p50_ms": math.exp(a), "other_work": other}
        for a, b, other in zip(first, second, others, strict=True)
    ]


def document(rows: Sequence[dict[str, Any]], slower: float) -> dict[str, Any]:
    """The rows as a `table`; its remarks count how often each interval excludes 1."""
    remarks = []
    for batch, condition in sorted({(row["batch"], row["condition"]) for row in rows}):
        own = [row for row in rows if (row["batch"], row["condition"]) == (batch, condition)]
        length = sum(row["run"] == own[0]["run"] for row in own)
        logs = np.log([row["speedup"] for row in own])
        ends = {look * TimingOptions.launches for look in range(1, LOOKS + 1)}
        for launches in sorted({length} | ends):
            if joined := [logs[i : i + launches] for i in range(0, len(logs) - launches + 1, launches)]:
                copy, found = excluded(joined), excluded([part - math.log(slower) for part in joined])
                remarks.append(
                    f"batch {batch}, {condition}, {launches} launches: the interval excludes 1 in {copy} of "
                    f"{len(joined)} runs for the copy, in {found} for a copy × {slower:g}"
                )
    return results.document(
        "table",
        command=shlex.join(["python", "-m", "slimdeploy.benchmarks.interval_check", *sys.argv[1:]]),
        title="A model against a byte-identical copy: coverage of bench's 95 % interval",
        columns=COLUMNS,
        rows=[{name: row[name] for name in COLUMNS} for row in rows],
        remarks=remarks,
    )


def excluded(runs: Sequence[np.ndarray]) -> int:
    """The number of runs whose 95 % interval of the mean of their (launches,) log speed-ups excludes 0."""
    intervals = [statistics.estimate(run).interval() for run in runs]
    return sum(not low <= 1 <= high for low, high in intervals)


if __name__ == "__main__":
    run_program(main, "interval_check")
