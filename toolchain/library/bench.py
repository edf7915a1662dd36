"""`slimdeploy.bench`: models against each other, in fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.measure.bench import BenchOptions, find_surroundings, measure
from slimdeploy.toolchain.measure.labelled_images import dataset_images
from slimdeploy.toolchain.measure.subjects import subjects_for
from slimdeploy.toolchain.measure.timing import TimingOptions
from slimdeploy.toolchain.runtime.session import SessionOptions


@dataclass(frozen=True)
class BenchRow:
    """One model at one batch size. `ci95_ms` is the 95 % interval of the median; `accuracy` is in 0…1."""

    model: str
    backend: str
    precision: str
    batch: int
    p50_ms: float
    ci95_ms: tuple[float, float]
    images_per_second: float
    accuracy: float | None


@dataclass(frozen=True)
class Comparison:
    """A model against its baseline: how many times as fast, with the 95 % interval."""

    baseline: str
    model: str
    batch: int
    speedup: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class BenchResult:
    """A measurement; `document` is what `bench --output` writes, every sample included."""

    document: dict[str, Any]

    @property
    def rows(self) -> tuple[BenchRow, ...]:
        """One for each model and batch size."""
        return tuple(
            BenchRow(
                row["model"], row["backend"], row["precision"], row["batch"], row["latency_ms"]["p50"],
                tuple(row["latency_ms"]["ci95"]), row["images_per_second"], row["accuracy"],
            )
            for row in self.document["rows"]
        )  # fmt: skip

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """One for each model but the baseline, and batch size."""
        return tuple(
            Comparison(c["baseline"], c["model"], c["batch"], c["speedup"], tuple(c["ci95"]))
            for c in self.document["comparisons"]
        )

    def to_json(self) -> dict[str, Any]:
        """The document without its raw samples."""
        return results.without_samples(self.document)


def bench(
    models: Sequence[str | Path],
    *,
    data: DataOptions | None = None,
    limit: int | None = None,
    batches: Sequence[int] = (1, 64),
    timing: TimingOptions | None = None,
    backends: Sequence[str] = ("auto",),
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] = lambda message: None,
    command: Sequence[str] = ("slimdeploy.bench",),
) -> BenchResult:
    """Accuracy, latency and memory of `models` side by side; the first is the baseline.

    Args:
        models: Checkpoints, ONNX files and engines. Each runs in processes of its own, in random order.
        data: Test images for the accuracy. Without it none is measured.
        limit: A class-balanced subset of so many test images.
        batches: Batch sizes.
        timing: How long to time, and how sure to be; seconds, and half-widths relative to the median.
        backends: What runs the models; several are compared.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads. Without it: all cores.
        progress: Is told what is being done.
        command: What the result records as its origin.

    Raises:
        SlimdeployError: No models, or one that can't be opened, fed or run.
    """
    if not models:
        raise SlimdeployError("`models` names no model")
    options = SessionOptions(device=device, threads=threads)
    subjects = subjects_for([Path(model) for model in models], backends, options)
    around = find_surroundings(dataset_images(data, limit) if data else None, progress)
    how = BenchOptions(tuple(batches), timing or TimingOptions(), threads)
    return BenchResult(measure(subjects, how, around, command=command))
