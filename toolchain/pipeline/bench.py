"""The stage `bench` of a run: compare its ONNX files in onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.toolchain.library.bench import BenchResult, bench
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.measure.options import BenchOptions
from slimdeploy.toolchain.pipeline.recipe import Recipe


def bench_stage(recipe: Recipe, models: list[Path], output: Path, threads: int | None) -> BenchResult:
    """Measure `models`, the first of which is the baseline, and write the result to `output`."""
    options = BenchOptions(
        **{**vars(recipe.bench), "threads": threads}, backends=("onnxruntime",), device="cpu"
    )
    result = bench(
        models,
        data=recipe.data,
        options=options,
        command=["slimdeploy", "bench", *map(str, models)],
    )
    results.write(output, result.document)
    return result
