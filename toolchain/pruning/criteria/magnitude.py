"""Norms of the filters that make a channel (Li et al., arXiv 1608.08710)."""

from __future__ import annotations

import numpy as np
import torch

from slimdeploy.toolchain.pruning.criteria.registry import Evidence, register_criterion
from slimdeploy.toolchain.pruning.groups import ChannelGroup


@register_criterion("l1")
def l1(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean |w| over the filters of all producers: per weight, so that large and small filters compare."""
    return _mean_norm(evidence, group, 1)


@register_criterion("l2")
def l2(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Root mean square of the filters' weights over all producers."""
    return _mean_norm(evidence, group, 2)


def _mean_norm(evidence: Evidence, group: ChannelGroup, order: int) -> np.ndarray:
    norms = []
    for name in group.producers:
        filters = evidence.network.conv(name).weight.detach().double().flatten(1)
        norms.append(filters.abs().pow(order).mean(1).pow(1 / order))
    return torch.stack(norms).mean(0).cpu().numpy()
