"""Measure the statistics for quantisation: channel ranges, and histograms after equalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from slimdeploy.calibrate.classifier import Classifier
from slimdeploy.calibrate.collect import collect, collect_widths
from slimdeploy.calibrate.equalisation import equalise, tensors_to_equalise
from slimdeploy.calibrate.histogram import Histogram
from slimdeploy.calibrate.inference import batches
from slimdeploy.calibrate.options import CalibrationData
from slimdeploy.calibrate.ranges import Ranges, StaleRanges, images_sha256, load_ranges, save_ranges
from slimdeploy.toolchain import artifacts

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Called with a title and a total; yields a function to call after each step."""


def no_progress(title: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
    """Shows nothing."""
    return nullcontext(lambda count: None)


def measure(
    source: Classifier,
    stream: Callable[[], Iterable[np.ndarray]],
    *,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> tuple[dict[str, np.ndarray], dict[str, Histogram]]:
    """Channel ranges of `source`, and histograms of `source` after equalisation by them.

    `stream` returns the batches, (n, C, H, W) float32; it is called twice. Raises like `collect`.
    """
    widths = collect_widths(source, tensors_to_equalise(source), stream(), threads=threads, advance=advance)
    return widths, collect(equalise(source, widths), stream(), threads=threads, advance=advance)


def measured(
    source: Classifier,
    model: Path,
    data: CalibrationData,
    *,
    path: Path | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Ranges:
    """The ranges of `source`, read from `model`: from the file `path` if it exists and is valid, else
    measured and written to the file.

    Raises StaleRanges for an invalid file, unless `force`.
    """
    sha256, images = artifacts.sha256_file(model), data.ranges.images
    if path and path.exists():
        try:
            return load_ranges(path, model_sha256=sha256, images=images)
        except StaleRanges:
            if not force:
                raise
    with progress("measuring activations", 2 * len(images)) as advance:
        found = measure(source, lambda: batches(images, data.preprocessing), threads=threads, advance=advance)
    ranges = Ranges(sha256, images_sha256(images), len(images), *found)
    if path:
        save_ranges(path, ranges)
    return ranges
