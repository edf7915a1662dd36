"""Whether a pruning target can be met at all, told before anything is trained."""

from __future__ import annotations

import numpy as np

from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.pruning.criterion import CRITERIA
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import budget_for, choose_channels, plan_groups


def check_reachable(graph: Graph, options: PruneOptions, size: int) -> None:
    """Raises SlimdeployError, naming the smallest network, where even that misses the target of `options`.

    Which channels go first decides nothing here: all count alike.
    """
    groups, criterion = plan_groups(graph, options), CRITERIA[options.criterion]
    alike = {group.name: np.zeros(group.width) for group in groups if criterion.applies(graph, group)}
    choose_channels(graph, alike, options, budget_for(graph, groups, options, size))
