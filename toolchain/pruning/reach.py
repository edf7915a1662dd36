"""Check before training whether a pruning target can be reached."""

from __future__ import annotations

import numpy as np

from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.pruning.criterion import CRITERIA
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import budget_for, choose_channels, plan_groups


def check_reachable(graph: Graph, options: PruneOptions, size: int) -> None:
    """Raises SlimdeployError, naming the smallest possible network, if it misses the target of `options`.

    The order of removal doesn't matter here: all channels get the same score.
    """
    groups, criterion = plan_groups(graph, options), CRITERIA[options.criterion]
    alike = {group.name: np.zeros(group.width) for group in groups if criterion.applies(graph, group)}
    choose_channels(graph, alike, options, budget_for(graph, groups, options, size))
