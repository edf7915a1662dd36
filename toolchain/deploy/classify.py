"""Classifies images one batch after the other, and says where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.deploy.device import open_deployed
from slimdeploy.toolchain.deploy.predict import Prediction, top_classes
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import ModelInfo
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import Session, SessionOptions, open_session

Source = tuple[str, Callable[[], np.ndarray]]
"""An image's name, and how to get it as (size, size, 3) uint8; raises SlimdeployError where it can't be
had.
"""


@dataclass(frozen=True)
class Result:
    """What one image shows, likeliest class first, or why it couldn't be read."""

    image: str
    top: tuple[Prediction, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"image": self.image, "error": self.error}
        return {"image": self.image, "top": [vars(p) for p in self.top]}


@dataclass
class Timings:
    """Seconds spent in each stage, a number for each batch, and the images in it."""

    read: list[float] = field(default_factory=list)
    preprocess: list[float] = field(default_factory=list)
    inference: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Mean milliseconds for an image by stage, and images/s over all of them."""
        total = sum(self.images)
        stages = {"read": self.read, "preprocess": self.preprocess, "inference": self.inference}
        spent = sum(map(sum, stages.values()))
        return {
            "images": total,
            "ms_per_image": {
                name: 1e3 * sum(each) / total if total else None for name, each in stages.items()
            },
            "images_per_second": total / spent if spent else None,
        }


def open_model(model: Path | None, root: Path, options: SessionOptions) -> tuple[Session, ModelInfo, str]:
    """The model file given, or else the current version in `root`; with its description and its name.

    Raises SlimdeployError for a model that doesn't say its classes and preprocessing.
    """
    if model is None:
        session, name = open_deployed(Store(root), options)
    else:
        session, name = open_session(model, options=options), str(model)
    if session.info is None:
        session.close()
        raise SlimdeployError(
            f"{name} doesn't say its classes and preprocessing: slimdeploy export writes one that does"
        )
    return session, session.info, name


def classify_images(
    session: Session, info: ModelInfo, sources: Iterable[Source], *, top: int, batch: int
) -> tuple[list[Result], Timings]:
    """Classify all images of `sources` in order, `batch` at a time. An unreadable one gets its own error."""
    results: list[Result] = []
    timings = Timings()
    waiting: list[tuple[int, np.ndarray]] = []
    reading = 0.0

    def compute() -> None:
        nonlocal reading
        started = time.perf_counter()
        inputs = normalise(np.stack([image for _, image in waiting]), info.preprocessing)
        prepared = time.perf_counter()
        logits = session.run(inputs)
        done = time.perf_counter()
        for (place, _), found in zip(waiting, top_classes(logits, info.class_names, top), strict=True):
            results[place] = Result(results[place].image, tuple(found))
        timings.read.append(reading)
        timings.preprocess.append(prepared - started)
        timings.inference.append(done - prepared)
        timings.images.append(len(waiting))
        waiting.clear()
        reading = 0.0

    for name, read in sources:
        started = time.perf_counter()
        try:
            waiting.append((len(results), read()))
            results.append(Result(name))
        except SlimdeployError as error:
            results.append(Result(name, error=str(error)))
        reading += time.perf_counter() - started
        if len(waiting) == batch:
            compute()
    if waiting:
        compute()
    return results, timings
