"""Classify images in batches, and measure the time of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.deploy.device import open_deployed
from slimdeploy.toolchain.deploy.predict import NOT_FINITE, Prediction, top_classes
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import Session, SessionOptions, open_session

Source = tuple[str, Callable[[], np.ndarray]]
"""An image's name, and a function that returns it as (size, size, 3) uint8 or raises SlimdeployError."""

_Read = tuple[str, np.ndarray | SlimdeployError]
"""A source's name, and its image or the error."""


@dataclass(frozen=True)
class Result:
    """The classes of one image, most probable first, or why it couldn't be read."""

    image: str
    top: tuple[Prediction, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"image": self.image, "error": self.error}
        return {"image": self.image, "top": [vars(p) for p in self.top]}


@dataclass
class Timings:
    """Seconds spent in each stage, and the number of images."""

    read: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0
    images: int = 0

    def to_json(self) -> dict[str, Any]:
        """Mean milliseconds per image by stage, and images/s in total."""
        stages = {"read": self.read, "preprocess": self.preprocess, "inference": self.inference}
        spent = sum(stages.values())
        return {
            "images": self.images,
            "ms_per_image": {
                name: 1e3 * seconds / self.images if self.images else None for name, seconds in stages.items()
            },
            "images_per_second": self.images / spent if spent else None,
        }


def open_model(model: Path | None, root: Path, options: SessionOptions) -> tuple[Session, ModelInfo, str]:
    """Open the given model file or the current version in `root`; returns the session, its description and
    its name.

    Raises SlimdeployError for a model without classes and preprocessing.
    """
    if model is None:
        session, name = open_deployed(Store(root), options)
    else:
        session, name = open_session(model, options=options), str(model)
    if session.info is None:
        session.close()
        raise SlimdeployError(
            f"{name} contains no classes and preprocessing: create it with slimdeploy export"
        )
    return session, session.info, name


def classify_images(
    session: Session, info: ModelInfo, sources: Iterable[Source], timings: Timings, *, top: int, batch: int
) -> Iterator[Result]:
    """Classify the images of `sources` in batches, and yield the results in order.

    An unreadable image gives a result with an error. The durations are added to `timings`.
    """
    waiting: list[_Read] = []
    for name, read in sources:
        started = time.perf_counter()
        try:
            waiting.append((name, read()))
        except SlimdeployError as error:
            waiting.append((name, error))
        timings.read += time.perf_counter() - started
        if len(waiting) == batch:
            yield from _classify_batch(session, info, waiting, timings, top)
            waiting = []
    yield from _classify_batch(session, info, waiting, timings, top)


def _classify_batch(
    session: Session, info: ModelInfo, batch: list[_Read], timings: Timings, top: int
) -> Iterator[Result]:
    images = [found for _, found in batch if isinstance(found, np.ndarray)]
    rows: Iterator[np.ndarray] = iter(())
    if images:
        started = time.perf_counter()
        inputs = normalise(np.stack(images), info.preprocessing)
        prepared = time.perf_counter()
        logits = session.run(inputs)
        timings.preprocess += prepared - started
        timings.inference += time.perf_counter() - prepared
        timings.images += len(images)
        rows = iter(logits)
    for name, found in batch:
        if isinstance(found, SlimdeployError):
            yield Result(name, error=str(found))
            continue
        row = next(rows)
        if np.isfinite(row).all():
            yield Result(name, tuple(top_classes(row[None], info.class_names, top)[0]))
        else:
            yield Result(name, error=NOT_FINITE)
