"""Training on: what a network was trained with is the default of every later training."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.training.options import TrainOptions, inherited

OF_IMAGES = ("validation", "limit")
"""Which images are trained on: with other data they start anew."""


def as_before(options: TrainOptions, info: ModelInfo, *, given: Collection[str], data: str) -> TrainOptions:
    """`options`, but those not `given` as the network that `info` describes was last trained, on `data`."""
    before = _last_training(info)
    values = before.get("options") or {}
    kept = {name: values[name] for name in inherited(given) if name in values}
    if not _same_data((before.get("data") or {}).get("name", ""), data):
        kept = {name: value for name, value in kept.items() if name not in OF_IMAGES}
    changed = {name: value for name, value in kept.items() if value != getattr(options, name)}
    if not changed:
        return options
    log(f"as the network was trained before: {' '.join(_typed(*item) for item in changed.items())}")
    return replace(options, **changed)


def _last_training(info: ModelInfo) -> dict[str, Any]:
    trainings = [entry for entry in info.provenance if entry.get("stage") in ("train", "finetune")]
    return trainings[-1] if trainings else {}


def _same_data(one: str, other: str) -> bool:
    """Whether two values of --data name the same source and, where there is a path, the same place."""
    (source, _, path), (other_source, _, other_path) = one.partition(":"), other.partition(":")
    return source == other_source and os.path.realpath(path) == os.path.realpath(other_path)


def _typed(name: str, value: object) -> str:
    """The option as on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"
