"""The stage `bench` of a run: its ONNX files against each other on onnxruntime's CPU provider."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.toolchain.library.bench import BenchResult, bench
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.measure.timing import TimingOptions
from slimdeploy.toolchain.pipeline.recipe import Recipe


def bench_stage(recipe: Recipe, models: list[Path], output: Path, threads: int | None) -> BenchResult:
    """Measure `models`, whose first is what speed-ups are against, and write the result to `output`."""
    choice = recipe.bench
    result = bench(
        models,
        data=recipe.data,
        limit=choice.limit,
        batches=choice.batch,
        timing=TimingOptions(
            seconds=choice.seconds, ci=choice.ci, launches=choice.launches, seed=choice.seed
        ),
        backends=["onnxruntime"],
        device="cpu",
        threads=threads,
        command=["slimdeploy", "bench", *map(str, models)],
    )
    results.write(output, result.document)
    return result
