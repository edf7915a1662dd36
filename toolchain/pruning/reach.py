"""Whether a pruning target can be met at all, told before anything is trained."""

from __future__ import annotations

import numpy as np

from slimdeploy.toolchain.networks.spec import NetworkSpec
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import budget_for, choose_channels, plan_groups


def check_reachable(spec: NetworkSpec, options: PruneOptions, size: int) -> None:
    """Raises SlimdeployError, naming the smallest network, where even that misses the target of `options`.

    Which channels go first decides nothing here: all count alike.
    """
    groups = plan_groups(spec, options)
    alike = {group.name: np.zeros(group.width) for group in groups}
    choose_channels(spec, alike, options, budget_for(spec, groups, options, size))
