"""Continued training: the options of the last training are the defaults of the next."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.training.options import WEIGHTS_LR, TrainOptions, inherited

OF_IMAGES = ("validation", "limit")
"""Options that select the training images; they are not inherited with other data."""


def as_before(options: TrainOptions, info: ModelInfo, *, given: Collection[str], data: str) -> TrainOptions:
    """`options`, with those not `given` set as in the last training of the network in `info`. `data` is the
    name of the data; empty if it has none.
    """
    before = _last_training(info)
    values = before.get("options") or {}
    kept = {name: values[name] for name in inherited(given) if name in values}
    if not _same_data((before.get("data") or {}).get("name", ""), data):
        kept = {name: value for name, value in kept.items() if name not in OF_IMAGES}
    changed = {name: value for name, value in kept.items() if value != getattr(options, name)}
    if not changed:
        return options
    log(f"options of the network's last training: {' '.join(_typed(*item) for item in changed.items())}")
    return replace(options, **changed)


def from_weights(options: TrainOptions, *, given: Collection[str]) -> TrainOptions:
    """`options`, with the learning rate of a training that starts from weights unless `lr` is `given`."""
    if "lr" in given or not options.epochs:
        return options
    log(f"`lr` {WEIGHTS_LR:g}, because the training starts from weights")
    return replace(options, lr=WEIGHTS_LR)


def was_trained(info: ModelInfo) -> bool:
    """Whether slimdeploy has trained the network in `info`."""
    return bool(_last_training(info))


def _last_training(info: ModelInfo) -> dict[str, Any]:
    trainings = [entry for entry in info.provenance if entry.get("stage") in ("train", "finetune")]
    return trainings[-1] if trainings else {}


def _same_data(one: str, other: str) -> bool:
    """Whether two values of --data name the same source and, where there is a path, the same place; false if
    one is empty.
    """
    (source, _, path), (other_source, _, other_path) = one.partition(":"), other.partition(":")
    return source == other_source != "" and os.path.realpath(path) == os.path.realpath(other_path)


def _typed(name: str, value: object) -> str:
    """The option as written on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"
