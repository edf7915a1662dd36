"""Optimal Brain Surgeon on channels: the loss that is left after the best compensation."""

from __future__ import annotations

import numpy as np

from slimdeploy.toolchain.pruning.compensation import surgeon_scores
from slimdeploy.toolchain.pruning.criteria.registry import Evidence, register_criterion
from slimdeploy.toolchain.pruning.groups import ChannelGroup

STEPS = 64
"""Removals are taken in so many steps at most: each one costs a rank update of the inverse covariance."""


@register_criterion("surgeon", needs_data=True)
def surgeon(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """See `compensation.surgeon_scores`."""
    assert evidence.moments is not None
    readers = [(evidence.network.reader_weight(name), evidence.moments[name]) for name in group.consumers]
    return surgeon_scores(readers, chunk=max(1, group.width // STEPS))
