"""One step of pruning: measure, select, cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.prune_feeds import PruningFeeds
from slimdeploy.toolchain.library.prune_result import Latency
from slimdeploy.toolchain.networks.cutting import pruned_graph
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.progress import working
from slimdeploy.toolchain.pruning.activations import Moments, measure_inputs
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import (
    Budget,
    Scores,
    budget_for,
    choose_channels,
    plan_groups,
    score_channels,
)
from slimdeploy.toolchain.pruning.surgery import Folding, prune_compensated, prune_network

if TYPE_CHECKING:
    from slimdeploy.toolchain.pruning.latency import LatencyBudget


@dataclass(frozen=True)
class Cut:
    """The same selection cut in three ways: `plain`, with constants folded, and `network`, which is used from
    then on.
    """

    plain: GraphNetwork
    folded: GraphNetwork
    folding: Folding
    network: GraphNetwork
    latency: Latency | None


def cut_network(
    network: GraphNetwork,
    original: GraphNetwork,
    feeds: PruningFeeds | None,
    options: PruneOptions,
    size: int,
    progress: float,
    device: str,
    *,
    removed: int = 0,
) -> Cut:
    """Select channels and remove them. `progress` (0…1) is the position between the original and the budget.
    `removed` is the number of channels that training has removed from the original already.
    """
    moments = _moments(network, feeds, options, device) if feeds else None
    groups = plan_groups(network.graph, options)
    whole = plan_groups(original.graph, options)
    final = budget_for(original.graph, whole, options, size, removed=removed)
    own = budget_for(network.graph, groups, options, size)
    full = final.costs.total({g.name: g.width for g in whole})
    # Each step removes the same share of the remaining channels.
    limit = final.limit if progress == 1 else full * min(1.0, final.limit / full) ** progress
    scores = score_channels(network, moments, options)
    met = None
    if options.latency_ms is not None and progress == 1:
        met = _latency_budget(network.graph, scores, options, own, size)
        limit = met.budget_ms
    kept = choose_channels(network.graph, scores, options, replace(own, limit=limit))
    latency = None
    if met:
        predicted = own.costs.total({name: len(channels) for name, channels in kept.items()})
        latency = Latency(predicted, met.measured_ms, met.not_measured)
    plain = prune_network(network, groups, kept, fold=False)[0]
    folded, folding = prune_network(network, groups, kept, fold=options.fold)
    mended = prune_compensated(network, groups, kept, moments) if moments and options.compensate else folded
    return Cut(plain, folded, folding, mended, latency)


def _latency_budget(
    graph: Graph, scores: Scores, options: PruneOptions, budget: Budget, size: int
) -> LatencyBudget:
    """The budget in predicted milliseconds for which the measured latency meets the target."""
    from slimdeploy.toolchain.pruning.latency import budget_for_latency

    assert options.latency_table is not None
    groups = plan_groups(graph, options)

    def plan(limit: float) -> Graph:
        kept = choose_channels(graph, scores, options, replace(budget, limit=limit))
        return pruned_graph(graph, groups, kept)

    return budget_for_latency(plan, budget.limit, Path(options.latency_table), size, measure=options.measure)


def _moments(network: GraphNetwork, feeds: PruningFeeds, options: PruneOptions, device: str) -> Moments:
    readers = {name for group in plan_groups(network.graph, options) for name in group.consumers}
    with working("measuring activations"):
        moments = measure_inputs(network, readers, feeds.statistics, device=device)
    for name, found in moments.items():
        if not all(torch.isfinite(tensor).all() for tensor in vars(found).values()):
            raise SlimdeployError(f"the inputs of {name} overflow float32 on these images: weights too large")
    return moments
