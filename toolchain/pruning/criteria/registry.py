"""The table of criteria: what each is given, and how it is found by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.pruning.activations import InputMoments
from slimdeploy.toolchain.pruning.groups import ChannelGroup

Moments = dict[str, InputMoments]


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at. `moments` are of the layers that read prunable channels; None without
    data.
    """

    network: ResNet
    moments: Moments | None
    seed: int


Criterion = Callable[[Evidence, ChannelGroup], np.ndarray]
"""Scores (width,) float64 ≥ 0 of a group's channels: what removing each one costs."""

CRITERIA: dict[str, Criterion] = {}
NEED_DATA: set[str] = set()
BUILT_IN = ("gamma", "magnitude", "fpgm", "taylor", "surgeon", "random_control")


def register_criterion(name: str, *, needs_data: bool = False) -> Callable[[Criterion], Criterion]:
    """Decorator: make a function a criterion by its name."""

    def register(criterion: Criterion) -> Criterion:
        CRITERIA[name] = criterion
        if needs_data:
            NEED_DATA.add(name)
        return criterion

    return register


def criterion_names() -> list[str]:
    """All names, in the order of registration."""
    for module in BUILT_IN:
        importlib.import_module(f"slimdeploy.toolchain.pruning.criteria.{module}")
    return list(CRITERIA)


def channel_scores(evidence: Evidence, groups: list[ChannelGroup], criterion: str) -> dict[str, np.ndarray]:
    """Scores of every group's channels by group name.

    Raises SlimdeployError for an unknown criterion, and for one that needs data where there is none.
    """
    if criterion not in criterion_names():
        raise unknown("criterion", criterion, CRITERIA)
    if criterion in NEED_DATA and evidence.moments is None:
        raise SlimdeployError(f"the criterion {criterion} looks at real images: pass --data")
    return {group.name: CRITERIA[criterion](evidence, group) for group in groups}
