"""`slimdeploy.bench`: compare models, each in fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.keywords import takes
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.measure.bench import find_surroundings, measure
from slimdeploy.toolchain.measure.labelled_images import dataset_images
from slimdeploy.toolchain.measure.options import BenchOptions
from slimdeploy.toolchain.measure.subjects import subjects_for
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
    """Speed-up of a model over its baseline, with the 95 % interval."""

    baseline: str
    model: str
    batch: int
    speedup: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class BenchResult:
    """A measurement; `document` is the content of `bench --output`, with every sample."""

    document: dict[str, Any]

    def __repr__(self) -> str:
        return f"BenchResult(rows={self.rows}, comparisons={self.comparisons})"

    @property
    def rows(self) -> tuple[BenchRow, ...]:
        """One row per model and batch size."""
        return tuple(
            BenchRow(
                row["model"], row["backend"], row["precision"], row["batch"], row["latency_ms"]["p50"],
                tuple(row["latency_ms"]["ci95"]), row["images_per_second"], row["accuracy"],
            )
            for row in self.document["rows"]
        )  # fmt: skip

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """One comparison per batch size and model other than the baseline."""
        return tuple(
            Comparison(c["baseline"], c["model"], c["batch"], c["speedup"], tuple(c["ci95"]))
            for c in self.document["comparisons"]
        )

    def to_json(self) -> dict[str, Any]:
        """The document without its raw samples."""
        return results.without_samples(self.document)


@takes(BenchOptions)
def bench(
    models: Sequence[str | Path],
    *,
    data: str | DataOptions | None = None,
    progress: Callable[[str], None] = lambda message: None,
    command: Sequence[str] = ("slimdeploy.bench",),
    options: BenchOptions,
) -> BenchResult:
    """Measure accuracy, latency and memory of `models` side by side; the first is the baseline.

    Args:
        models: Checkpoints, ONNX files and engines. Each runs in separate processes, in random order.
        data: Test images for the accuracy. Without it no accuracy is measured.
        progress: Called with a message at each step.
        command: The command recorded in the result.

    Raises:
        SlimdeployError: No models, or one that can't be opened or run.
    """
    if not models:
        raise SlimdeployError("`models` names no model")
    if options.limit and data is None:
        raise SlimdeployError("`limit` needs `data`: without images no accuracy is measured")
    data = DataOptions(data) if isinstance(data, str) else data
    how = SessionOptions(device=options.device, threads=options.threads)
    subjects = subjects_for([Path(model) for model in models], options.backends, how)
    around = find_surroundings(dataset_images(data, options.limit) if data else None, progress)
    return BenchResult(measure(subjects, options, around, command=command))
