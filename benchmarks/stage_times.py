"""Seconds of the interactive operations: pruning, export with comparison, decoding and reloading a folder.

    python -m slimdeploy.benchmarks.stage_times --data folder:data/cifar10-jpeg --output
    benchmarks/results/stages.json

Everything is imported before the measurement, and the images are cached in a temporary folder. Without
CHECKPOINT, a new network of `--arch` is pruned and exported.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.measure import results

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions, Dataset

COLUMNS = {
    "stage": "what was done",
    "seconds": "median over the repetitions",
    "seconds_min": "least",
    "seconds_max": "most",
    "repetitions": "how often",
}


def measure_data(data: DataOptions, repetitions: int) -> list[dict[str, Any]]:
    """Rows of COLUMNS for loading `data` with an empty cache, and repeatedly from the cache."""
    from slimdeploy.toolchain.data import decoding, sources  # noqa: F401  (imported when first needed)
    from slimdeploy.toolchain.data.dataset import load_dataset

    return [
        _row("decode and cache all images", [_seconds(lambda: load_dataset(data))]),
        _row("reload them", [_seconds(lambda: load_dataset(data)) for _ in range(repetitions)]),
    ]


def measure_network(checkpoint: Path, data: DataOptions, repetitions: int) -> list[dict[str, Any]]:
    """Rows of COLUMNS for pruning `checkpoint` 90 % and exporting it before and after."""
    from slimdeploy.toolchain.export.options import ExportOptions
    from slimdeploy.toolchain.pruning.options import PruneOptions
    from slimdeploy.toolchain.runtime import onnxruntime  # noqa: F401  (imported when first needed)
    from slimdeploy.toolchain.stages.export import export_stage
    from slimdeploy.toolchain.stages.prune import prune_stage

    pruned = checkpoint.with_name("pruned.safetensors")
    model = checkpoint.with_name("model.onnx")

    def prune() -> float:
        return prune_stage(
            checkpoint, options=PruneOptions(ratio=0.9), output=pruned, force=True
        ).result.seconds

    def export(source: Path) -> float:
        options = ExportOptions()
        return _seconds(lambda: export_stage(source, options=options, output=model, data=data, force=True))

    again = range(repetitions)
    return [
        _row("prune 90 %: score, select, cut", [prune() for _ in again]),
        _row("prune 90 %, with reading and writing", [_seconds(prune) for _ in again]),
        _row("export and compare, original", [export(checkpoint) for _ in again]),
        _row("export and compare, pruned", [export(pruned) for _ in again]),
    ]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _row(stage: str, seconds: list[float]) -> dict[str, Any]:
    print(f"{stage}: {statistics.median(seconds):.3f} s", file=sys.stderr)
    return {
        "stage": stage,
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "repetitions": len(seconds),
    }


@contextlib.contextmanager
def _empty_cache() -> Iterator[Path]:
    """A temporary folder, whose `cache` is used as the image cache inside."""
    before = os.environ.get("SLIMDEPLOY_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLIMDEPLOY_CACHE"] = f"{folder}/cache"
        try:
            yield Path(folder)
        finally:
            del os.environ["SLIMDEPLOY_CACHE"]
            if before is not None:
                os.environ["SLIMDEPLOY_CACHE"] = before


def _fresh_checkpoint(path: Path, arch: str, dataset: Dataset) -> Path:
    from slimdeploy.toolchain.models.checkpoint import save_checkpoint
    from slimdeploy.toolchain.models.model_info import ModelInfo
    from slimdeploy.toolchain.networks.architectures import build_graph
    from slimdeploy.toolchain.networks.module import build_network

    graph = build_graph(arch, classes=len(dataset.class_names))
    info = ModelInfo(graph, dataset.preprocessing, dataset.class_names)
    save_checkpoint(path, build_network(graph, seed=0), info)
    return path


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--data", required=True, metavar="NAME", help="folder:PATH, or any other source.")
@click.option("--arch", default="resnet50", show_default=True)
@click.option("--repetitions", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(checkpoint: Path | None, data: str, arch: str, repetitions: int, output: Path) -> None:
    from slimdeploy.toolchain.data.dataset import DataOptions, load_dataset

    options = DataOptions(data)
    with _empty_cache() as folder:
        rows = measure_data(options, repetitions)
        dataset, own = load_dataset(options), folder / "original.safetensors"
        if checkpoint:
            own.write_bytes(checkpoint.read_bytes())
        else:
            _fresh_checkpoint(own, arch, dataset)
        rows += measure_network(own, options, repetitions)
    images = len(dataset.train) + len(dataset.test)
    title = (
        f"Stages on {data}, {images:,} images of {dataset.preprocessing.size}×{dataset.preprocessing.size}"
    )
    command = shlex.join(["python", "-m", "slimdeploy.benchmarks.stage_times", *sys.argv[1:]])
    results.write(output, results.document("table", command=command, title=title, columns=COLUMNS, rows=rows))


if __name__ == "__main__":
    run_program(main, "stage_times")
