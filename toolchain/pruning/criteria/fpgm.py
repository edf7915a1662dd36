"""Distance from the other filters: near the geometric median a filter is replaceable by the rest."""

from __future__ import annotations

import numpy as np
import torch

from slimdeploy.toolchain.pruning.criteria.registry import Evidence, register_criterion
from slimdeploy.toolchain.pruning.groups import ChannelGroup


@register_criterion("fpgm")
def fpgm(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean distance to all filters of the layer (He et al., arXiv 1811.00250), per weight, mean over
    producers.
    """
    distances = []
    for name in group.producers:
        filters = evidence.network.conv(name).weight.detach().double().flatten(1)
        distances.append(torch.cdist(filters, filters).mean(1) / filters.shape[1] ** 0.5)
    return torch.stack(distances).mean(0).cpu().numpy()
