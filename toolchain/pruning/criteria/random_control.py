"""Chance, as a control: a criterion worth its name must beat it."""

from __future__ import annotations

import zlib

import numpy as np

from slimdeploy.toolchain.pruning.criteria.registry import Evidence, register_criterion
from slimdeploy.toolchain.pruning.groups import ChannelGroup


@register_criterion("random")
def random_control(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Uniform in 0…1, the same for the same seed and group."""
    return np.random.default_rng([evidence.seed, zlib.crc32(group.name.encode())]).random(group.width)
