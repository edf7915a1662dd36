"""How much a channel matters: the criteria, by name. Adding one is one function with `register_criterion`."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.activations import InputMoments
from slimdeploy.toolchain.pruning.compensation import surgeon_scores
from slimdeploy.toolchain.pruning.groups import ChannelGroup, source_of

Moments = dict[str, InputMoments]

SURGEON_STEPS = 64
"""Removals are taken in so many steps at most: each one costs a rank update of the inverse covariance."""


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at. `moments` are of the layers that read prunable channels; None without
    data.
    """

    network: GraphNetwork
    moments: Moments | None
    seed: int


Score = Callable[[Evidence, ChannelGroup], np.ndarray]
"""Scores (width,) float64 ≥ 0 of a group's units: what removing each one costs."""


@dataclass(frozen=True)
class Criterion:
    """A score, and what it needs: images, BN scales."""

    score: Score
    needs_data: bool
    needs_gamma: bool

    def applies(self, graph: Graph, group: ChannelGroup) -> bool:
        """Whether it can tell the units of `group` apart."""
        return not self.needs_gamma or any(graph.by_name[bn].attributes["affine"] for bn in group.batchnorms)


CRITERIA: dict[str, Criterion] = {}


def register_criterion(
    name: str, *, needs_data: bool = False, needs_gamma: bool = False
) -> Callable[[Score], Score]:
    """Decorator: make a function a criterion by its name."""

    def register(score: Score) -> Score:
        CRITERIA[name] = Criterion(score, needs_data, needs_gamma)
        return score

    return register


def channel_scores(evidence: Evidence, groups: list[ChannelGroup], criterion: str) -> dict[str, np.ndarray]:
    """Scores of the units of every group that the criterion applies to, by group name.

    Raises SlimdeployError for an unknown criterion, for one that needs data where there is none, and for one
    that needs BN scales in a network without BN.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    found = CRITERIA[criterion]
    if found.needs_data and evidence.moments is None:
        raise SlimdeployError(f"the criterion {criterion} looks at real images: pass --data")
    chosen = [group for group in groups if found.applies(evidence.network.graph, group)]
    if groups and not chosen:
        raise SlimdeployError(
            f"the criterion {criterion} needs BN scales γ, and none of this network's prunable channels has "
            f"one: use --criterion l2, or taylor or surgeon with --data"
        )
    return {group.name: found.score(evidence, group) for group in chosen}


@register_criterion("gamma", needs_gamma=True)
def gamma(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean |γ| of the BNs behind the channel (network slimming, Liu et al., arXiv 1708.06519, section 3).

    A shortcut's BN without affine has γ = 1.
    """
    scales = []
    for name in group.batchnorms:
        node = evidence.network.graph.by_name[name]
        if node.attributes["affine"]:
            scales.append(_of_units(evidence.network.weight(name).detach().double().abs(), group, name))
        else:
            scales.append(torch.ones(group.width).double())
    return torch.stack([scale.cpu() for scale in scales]).mean(0).numpy()


@register_criterion("l1")
def l1(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean |w| over the filters of all producers: per weight, so that large and small filters compare.

    Li et al., arXiv 1608.08710.
    """
    return _mean_norm(evidence, group, 1)


@register_criterion("l2")
def l2(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Root mean square of the filters' weights over all producers."""
    return _mean_norm(evidence, group, 2)


@register_criterion("fpgm")
def fpgm(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean distance to all filters of the group (He et al., arXiv 1811.00250), per weight, mean over
    producers: near the geometric median a filter is replaceable by the rest.
    """
    distances = []
    for name in group.producers:
        filters = _filters(evidence, name)[torch.from_numpy(group.positions[name].ravel())]
        found = torch.cdist(filters, filters).mean(1) / filters.shape[1] ** 0.5
        distances.append(found.unflatten(0, (group.width, -1)).mean(1))
    return torch.stack(distances).mean(0).cpu().numpy()


@register_criterion("taylor", needs_data=True)
def taylor(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean over images of (Σ activation·gradient)², summed over the layers that read the channel.

    Molchanov et al., arXiv 1906.10771, equation 8, with a gate on each channel.
    """
    scores = [moments.taylor for _, moments in _readers(evidence, group)]
    return torch.stack([s.unflatten(0, (group.width, -1)).sum(1) for s in scores]).sum(0).numpy()


@register_criterion("surgeon", needs_data=True)
def surgeon(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Optimal Brain Surgeon on channels: the loss that is left after the best compensation. See
    `compensation.surgeon_scores`.
    """
    readers = _readers(evidence, group)
    channels = len(readers[0][1].mean)
    if any(len(moments.mean) != channels for _, moments in readers):  # carried more than once by some
        readers = [reader for reader in readers if len(reader[1].mean) == channels]
    scores = surgeon_scores(readers, chunk=max(1, channels // SURGEON_STEPS))
    return scores.reshape(group.width, -1).sum(1)


@register_criterion("random")
def random_control(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Uniform in 0…1, the same for the same seed and group: a control that a criterion must beat."""
    return np.random.default_rng([evidence.seed, zlib.crc32(group.name.encode())]).random(group.width)


def _readers(evidence: Evidence, group: ChannelGroup) -> list[tuple[Tensor, InputMoments]]:
    """Weight (O, C, …) and input moments of every layer that reads the group, for its channels only."""
    assert evidence.moments is not None
    graph, found = evidence.network.graph, []
    for name in group.consumers:
        value, taps = source_of(graph, graph.by_name[name])
        channels = torch.from_numpy(group.positions[value].ravel())
        weight = evidence.network.weight(name)
        weight = weight.unflatten(1, (-1, taps)) if taps > 1 else weight
        found.append((weight[:, channels.to(weight.device)], evidence.moments[name].of_inputs(channels)))
    return found


def _filters(evidence: Evidence, name: str) -> Tensor:
    return evidence.network.weight(name).detach().double().flatten(1).cpu()


def _of_units(values: Tensor, group: ChannelGroup, name: str) -> Tensor:
    """(width,) mean over the channels that each unit has in the value `name`."""
    positions = torch.from_numpy(group.positions[name]).to(values.device)
    return values[positions].mean(1)


def _mean_norm(evidence: Evidence, group: ChannelGroup, order: int) -> np.ndarray:
    norms = [
        _of_units(_filters(evidence, name).abs().pow(order).mean(1).pow(1 / order), group, name)
        for name in group.producers
    ]
    return torch.stack(norms).mean(0).cpu().numpy()
