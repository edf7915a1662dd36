"""The interface of pruning criteria, and their table. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.channel_groups import ChannelGroup
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.registry import Registry

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.module import GraphNetwork
    from slimdeploy.toolchain.pruning.activations import InputMoments


@dataclass(frozen=True)
class Evidence:
    """Inputs of a criterion. `moments` belong to the layers that read prunable channels; None without
    data.
    """

    network: GraphNetwork
    moments: dict[str, InputMoments] | None
    seed: int


Score = Callable[[Evidence, ChannelGroup], np.ndarray]
"""Importance scores (width,) float64 ≥ 0 of a group's units; low scores are removed first."""


@dataclass(frozen=True)
class Criterion:
    """A scoring function and its requirements: images, BN scales."""

    score: Score
    needs_data: bool = False
    needs_gamma: bool = False

    def applies(self, graph: Graph, group: ChannelGroup) -> bool:
        """Whether it can rank the units of `group`."""
        return not self.needs_gamma or any(graph.by_name[bn].attributes["affine"] for bn in group.batchnorms)


def criterion(*, needs_data: bool = False, needs_gamma: bool = False) -> Callable[[Score], Criterion]:
    """Decorator: make a score a criterion."""
    return lambda score: Criterion(score, needs_data, needs_gamma)


_OWN = ("gamma", "l1", "l2", "fpgm", "random", "taylor", "surgeon")
CRITERIA: Registry[Criterion] = Registry(
    "criterion", Criterion, {name: f"slimdeploy.toolchain.pruning.criteria:{name}" for name in _OWN}
)


def channel_scores(evidence: Evidence, groups: list[ChannelGroup], criterion: str) -> dict[str, np.ndarray]:
    """Scores of the units of every group that the criterion applies to, by group name.

    Raises SlimdeployError for an unknown criterion, for one that needs data without data, for one that needs
    BN scales in a network without BN, or if the scores are not one finite number per unit.
    """
    found = CRITERIA.find(criterion)
    if found.needs_data and evidence.moments is None:
        raise SlimdeployError(f"the criterion {criterion} needs real images: pass `data`")
    chosen = [group for group in groups if found.applies(evidence.network.graph, group)]
    if groups and not chosen:
        raise SlimdeployError(
            f"the criterion {criterion} needs BN scales γ, and none of this network's prunable channels has "
            f"one: use `criterion` l2, or taylor or surgeon with `data`"
        )
    return {group.name: _checked(found.score(evidence, group), group, criterion) for group in chosen}


def _checked(scores: np.ndarray, group: ChannelGroup, criterion: str) -> np.ndarray:
    """The scores; raises SlimdeployError if they are invalid: criteria may come from other packages."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (group.width,):
        raise SlimdeployError(
            f"the criterion {criterion} returned {scores.shape} scores for the {group.width} channels of "
            f"{group.name}"
        )
    if not np.isfinite(scores).all():
        raise SlimdeployError(f"the criterion {criterion} returned NaN or infinite scores for {group.name}")
    return scores
