"""|γ|: what sparse training drives to zero."""

from __future__ import annotations

import numpy as np
import torch

from slimdeploy.toolchain.pruning.criteria.registry import Evidence, register_criterion
from slimdeploy.toolchain.pruning.groups import ChannelGroup


@register_criterion("gamma")
def gamma(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean |γ| of the BNs behind the channel (network slimming, Liu et al., arXiv 1708.06519, section 3).

    A shortcut's BN without affine has γ = 1.
    """
    scales = []
    for name in group.batchnorms:
        bn = evidence.network.batchnorm(name)
        scales.append(bn.weight.detach().double().abs() if bn.affine else torch.ones(group.width).double())
    return torch.stack([scale.cpu() for scale in scales]).mean(0).numpy()
