"""The stage `bench` of a run: its ONNX files against each other on onnxruntime's CPU provider."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.measure.bench import BenchOptions, find_surroundings, measure
from slimdeploy.toolchain.measure.labelled_images import dataset_images
from slimdeploy.toolchain.measure.subjects import subjects_for
from slimdeploy.toolchain.measure.timing import TimingOptions
from slimdeploy.toolchain.pipeline.recipe import Recipe
from slimdeploy.toolchain.runtime.session import SessionOptions


@dataclass(frozen=True)
class BenchResult:
    """A `bench` document without its raw samples, which stay in the file."""

    document: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.document


def bench_stage(recipe: Recipe, models: list[Path], output: Path, threads: int | None) -> BenchResult:
    """Measure `models`, whose first is what speed-ups are against, and write the result to `output`."""
    choice = recipe.bench
    timing = TimingOptions(seconds=choice.seconds, ci=choice.ci, launches=choice.launches, seed=choice.seed)
    subjects = subjects_for(models, ["onnxruntime"], SessionOptions(device="cpu", threads=threads))
    around = find_surroundings(dataset_images(recipe.data, choice.limit), lambda message: None)
    options = BenchOptions(choice.batch, timing, threads)
    result = measure(subjects, options, around, command=["slimdeploy", "bench", *map(str, models)])
    results.write(output, result)
    return BenchResult(results.without_samples(result))
