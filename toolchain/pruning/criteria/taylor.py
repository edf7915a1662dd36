"""First-order Taylor expansion of the loss on real images."""

from __future__ import annotations

import numpy as np
import torch

from slimdeploy.toolchain.pruning.criteria.registry import Evidence, register_criterion
from slimdeploy.toolchain.pruning.groups import ChannelGroup


@register_criterion("taylor", needs_data=True)
def taylor(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean over images of (Σ activation·gradient)², summed over the layers that read the channel.

    Molchanov et al., arXiv 1906.10771, equation 8, with a gate on each channel.
    """
    assert evidence.moments is not None
    return torch.stack([evidence.moments[name].taylor for name in group.consumers]).sum(0).numpy()
