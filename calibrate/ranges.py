"""The file of activation ranges: channel ranges and histograms as JSON, tied to the model and images that
they were measured on.

It contains distributions, not thresholds, so that another method or target needs no new measurement. If the
model or the images change, reading the file raises an error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.calibrate.histogram import BINS, Histogram
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError

FORMAT = 2


class StaleRanges(SlimdeployError):
    """The file belongs to another model or other images."""


@dataclass(frozen=True)
class Ranges:
    """The measurements, and the model and images that they belong to."""

    model_sha256: str
    images_sha256: str
    images: int
    widths: dict[str, np.ndarray]
    """The largest |x| of each channel, (C,) float32, of the tensors used by equalisation."""
    histograms: dict[str, Histogram]
    """Histogram of every activation, after equalisation."""


def images_sha256(images: np.ndarray) -> str:
    """Hash of a set of images (N, H, W, 3) uint8 in order."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def save_ranges(path: Path, ranges: Ranges) -> None:
    """Write `ranges` as JSON, atomically."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "model_sha256": ranges.model_sha256,
        "images_sha256": ranges.images_sha256,
        "images": ranges.images,
        "bins": BINS,
        "widths": {name: width.tolist() for name, width in ranges.widths.items()},
        "tensors": {name: _to_json(histogram) for name, histogram in ranges.histograms.items()},
    }
    document["sha256"] = _content_sha256(document)
    artifacts.write_bytes(path, (artifacts.json_text(document) + "\n").encode())


def load_ranges(path: Path, *, model_sha256: str, images: np.ndarray) -> Ranges:
    """Read the ranges of this model and these images.

    Raises SlimdeployError if the file is damaged, StaleRanges if it belongs to another model or other images.
    """
    ranges = read_ranges(path)
    if ranges.model_sha256 != model_sha256:
        raise StaleRanges(f"{path} is stale: it belongs to another model: delete it or pass --force")
    if ranges.images_sha256 != images_sha256(images):
        raise StaleRanges(
            f"{path} is stale: it was measured on {ranges.images} other images: delete it or pass --force"
        )
    return ranges


def read_ranges(path: Path) -> Ranges:
    """Read a file of ranges, of any model; raises SlimdeployError if it is damaged or another kind of
    file.
    """
    document = artifacts.read_json(path, "file of activation ranges")
    try:
        if document["format"] != FORMAT or document["bins"] != BINS:
            raise SlimdeployError(f"{path}: written by another version of slimdeploy: delete it")
        stated = document.pop("sha256", None)  # earlier versions wrote none
        if stated is not None and stated != _content_sha256(document):
            raise SlimdeployError(f"{path} is damaged: its content doesn't match its hash: delete it")
        tensors = {name: _from_json(entry) for name, entry in document["tensors"].items()}
        widths = {name: np.asarray(width, np.float32) for name, width in document["widths"].items()}
        return Ranges(
            document["model_sha256"], document["images_sha256"], int(document["images"]), widths, tensors
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SlimdeployError(
            f"{path} is not a file of activation ranges, or is damaged: choose another path, or delete it"
        ) from error


def _content_sha256(document: dict[str, Any]) -> str:
    return hashlib.sha256(artifacts.json_text(document).encode()).hexdigest()


def _to_json(histogram: Histogram) -> dict[str, object]:
    used = np.flatnonzero(histogram.counts)
    return {
        "minimum": histogram.minimum,
        "maximum": histogram.maximum,
        "zeros": histogram.zeros,
        "exponent": histogram.exponent,
        "counts": histogram.counts[: used[-1] + 1 if len(used) else 0].tolist(),
    }


def _from_json(entry: dict[str, Any]) -> Histogram:
    counts = np.zeros(BINS, np.int64)
    stored = np.asarray(entry["counts"], dtype=np.int64)
    counts[: len(stored)] = stored
    return Histogram(
        counts, int(entry["exponent"]), int(entry["zeros"]), float(entry["minimum"]), float(entry["maximum"])
    )
