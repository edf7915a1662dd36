"""How much a channel matters: one score a channel, higher is kept longer.

Another criterion is one more function under `@register_criterion("name")`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from slimdeploy.toolchain.errors import unknown
from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.pruning.groups import ChannelGroup

Criterion = Callable[[ResNet, ChannelGroup], np.ndarray]
CRITERIA: dict[str, Criterion] = {}


def register_criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Decorator: make a function `(network, group) -> (width,) scores` a criterion by its name."""

    def register(criterion: Criterion) -> Criterion:
        CRITERIA[name] = criterion
        return criterion

    return register


def channel_scores(network: ResNet, groups: list[ChannelGroup], criterion: str) -> dict[str, np.ndarray]:
    """Scores of every group's channels, (width,) float64 each; raises SlimdeployError for an unknown
    criterion.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    return {group.name: CRITERIA[criterion](network, group) for group in groups}


@register_criterion("gamma")
def gamma(network: ResNet, group: ChannelGroup) -> np.ndarray:
    """|γ| of the BN behind the channel (network slimming, Liu et al., arXiv 1708.06519, section 3)."""
    scales = [network.get_submodule(name).weight.detach().double().abs() for name in group.batchnorms]
    return sum(scales).cpu().numpy() / len(scales)
