"""Check the coverage of `bench`'s 95 % interval, and its sensitivity to small differences.

    python -m slimdeploy.benchmarks.interval_check final.onnx --batch 1 --runs 100
    --output benchmarks/results/interval-check.json

Measures an ONNX file against a byte-identical copy, and against a copy whose runs take `--slower` longer, as
`bench` does, `--runs` times. The interval of the copy's speed-up should exclude 1 in 5 of 100 runs; that of
the slower copy should exclude 1 as often as possible. Each run is a row of the output, written when it is
done; existing rows are kept.
"""

from __future__ import annotations

import functools
import math
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.measure import results, statistics
from slimdeploy.toolchain.measure.options import TimingOptions
from slimdeploy.toolchain.measure.process import launched
from slimdeploy.toolchain.measure.subjects import Subject, subjects_for
from slimdeploy.toolchain.measure.timing import Timing, time_models
from slimdeploy.toolchain.runtime.session import Session, SessionOptions, open_session

COLUMNS = {
    "batch": "batch size",
    "compared": "`copy`, the same bytes, or `slower`, which is artificially slower",
    "true_speedup": "by construction, on a quiet machine",
    "speedup": "measured",
    "ci95_low": "lower end of its 95 % interval",
    "ci95_high": "upper end of it",
    "launches": "fresh processes for each model",
    "launch_scatter": "standard deviation between launches of the log of the speed-up",
    "p50_ms": "median latency of the original",
    "other_work": "average number of processors used by other programs",
    "seconds": "duration of the run, for all three models",
}


class Slower:
    """A session whose runs take `share` longer than those of the inner session."""

    def __init__(self, inner: Session, share: float) -> None:
        self._inner, self._share = inner, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, batch: np.ndarray) -> np.ndarray:
        start = time.perf_counter_ns()
        logits = self._inner.run(batch)
        now = time.perf_counter_ns()
        end = now + (now - start) * self._share
        while time.perf_counter_ns() < end:
            pass
        return logits


def open_slower(path: Path, options: SessionOptions, share: float) -> Session:
    """A picklable opener of a slower copy."""
    return Slower(open_session(path, "onnxruntime", options), share)  # type: ignore[return-value]


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--runs", type=int, default=100, show_default=True)
@click.option("--slower", type=float, default=0.03, show_default=True, help="Share of a run.")
@click.option("--seconds", type=float, default=TimingOptions.seconds, show_default=True)
@click.option("--launches", type=int, default=TimingOptions.launches, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    model: Path,
    batch: int,
    threads: int,
    runs: int,
    slower: float,
    seconds: float,
    launches: int,
    output: Path,
) -> None:
    """Measure MODEL against a copy of itself and a slower copy, repeatedly."""
    rows = list(results.read(output, "table")["rows"]) if output.is_file() else []
    done = sum((row["batch"], row["compared"]) == (batch, "copy") for row in rows)
    with tempfile.TemporaryDirectory(prefix="slimdeploy-interval-check-") as folder:
        subjects = _subjects(model, Path(folder), SessionOptions(device="cpu", threads=threads), slower)
        for number in range(done, runs):
            options = TimingOptions(seconds=seconds, launches=launches, seed=number)
            rows += _run(subjects, batch, options, slower)
            results.write(output, document(rows))
            for row in rows[-2:]:
                print({name: row[name] for name in ("batch", "compared", "speedup", "ci95_low", "ci95_high")},
                      file=sys.stderr)  # fmt: skip


def _subjects(model: Path, folder: Path, options: SessionOptions, slower: float) -> list[Subject]:
    copies = [Path(shutil.copy(model, folder / name)) for name in ("copy.onnx", "slower.onnx")]
    found = subjects_for([model, *copies], ["onnxruntime"], options)
    opener = functools.partial(open_slower, copies[1], options, slower)
    return [*found[:2], Subject("slower", "onnxruntime", opener, copies[1], found[2].modules, "slower")]


def _run(
    subjects: Sequence[Subject], batch: int, options: TimingOptions, slower: float
) -> list[dict[str, Any]]:
    begin = time.perf_counter()
    original, *others = time_models(functools.partial(launched, subjects, batch), len(subjects), options)
    seconds = time.perf_counter() - begin
    names = (("copy", 1.0), ("slower", 1 / (1 + slower)))
    return [
        _row(original, timing, seconds) | {"batch": batch, "compared": name, "true_speedup": truth}
        for timing, (name, truth) in zip(others, names, strict=True)
    ]


def _row(original: Timing, other: Timing, seconds: float) -> dict[str, Any]:
    found = statistics.ratio(original.by_launch(), other.by_launch())
    low, high = found.interval()
    return {
        "speedup": math.exp(found.mean),
        "ci95_low": low,
        "ci95_high": high,
        "launches": len(original.launches),
        "launch_scatter": found.error * math.sqrt(len(original.launches)),
        "p50_ms": float(np.median(original.samples())),
        "other_work": float(np.mean(original.others)) if original.others else None,
        "seconds": seconds,
    }


def document(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows as a `table`; its remarks count how often each interval excludes 1."""
    remarks = []
    for batch in sorted({row["batch"] for row in rows}):
        for name in ("copy", "slower"):
            own = [row for row in rows if (row["batch"], row["compared"]) == (batch, name)]
            out = sum(not row["ci95_low"] <= 1 <= row["ci95_high"] for row in own)
            remarks.append(f"batch {batch}, {name}: the interval excludes 1 in {out} of {len(own)} runs")
    return results.document(
        "table",
        command=shlex.join(["python", "-m", "slimdeploy.benchmarks.interval_check", *sys.argv[1:]]),
        title="A model against itself and against a slower copy: coverage of bench's 95 % interval",
        columns=COLUMNS,
        rows=[{name: row[name] for name in COLUMNS} for row in rows],
        remarks=remarks,
    )


if __name__ == "__main__":
    run_program(main, "interval_check")
