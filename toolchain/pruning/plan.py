"""From options and statistics to the kept channels: scores, costs and budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.branches import removable_blocks
from slimdeploy.toolchain.networks.channel_groups import (
    ChannelGroup,
    channel_groups,
    unit_channels,
)
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.activations import Moments
from slimdeploy.toolchain.pruning.costs import ChannelCount, Widths, mac_model, parameter_model
from slimdeploy.toolchain.pruning.criterion import Evidence, channel_scores
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.selection import Costs, Kept, Rules, select

Scores = dict[str, np.ndarray]
"""Group name -> importance of each of its channels, comparable between groups."""


@dataclass(frozen=True)
class Budget:
    """At most `limit` by `costs`, in `unit`."""

    costs: Costs
    limit: float
    unit: str
    granularity: int = 1
    """Only a width that falls below a multiple of this saves anything."""


def budget_for(
    graph: Graph, groups: list[ChannelGroup], options: PruneOptions, size: int, *, removed: int = 0
) -> Budget:
    """The budget set by `options` for `graph` on images of `size` pixels. A ratio includes the `removed`
    channels, which training has removed already.
    """
    if options.params is not None:
        costs = parameter_model(graph, groups, size, folded=options.fold or options.compensate)
        return Budget(costs, options.params, "parameters")
    if options.macs is not None:
        return Budget(mac_model(graph, groups, size), options.macs, "MACs")
    if options.latency_ms is not None and options.latency_table is not None:
        from slimdeploy.toolchain.latency.table import load_table
        from slimdeploy.toolchain.pruning.latency import LatencyCosts

        table = load_table(options.latency_table)
        return Budget(LatencyCosts(table, graph, groups, size), options.latency_ms, "ms", table.granularity)
    assert options.ratio is not None
    return channel_budget(groups, options.ratio, removed)


def channel_budget(groups: list[ChannelGroup], ratio: float, removed: int) -> Budget:
    """The channels that are left without `ratio` of those in `groups` and the `removed` ones."""
    channels = removed + sum(group.width for group in groups)
    removable = int(channels * ratio + 1e-9)  # 100 × 0.29 is 28.999…
    return Budget(ChannelCount(), channels - removable, f"of {channels:,} prunable channels")


def plan_groups(graph: Graph, options: PruneOptions) -> list[ChannelGroup]:
    """The groups that `options` allow to be pruned."""
    return channel_groups(graph, residual=options.residual)


def score_channels(network: GraphNetwork, moments: Moments | None, options: PruneOptions) -> Scores:
    """Importance of each channel of every prunable group; raises SlimdeployError like the criterion."""
    groups = plan_groups(network.graph, options)
    return channel_scores(Evidence(network, moments, options.seed), groups, options.criterion)


def choose_channels(graph: Graph, scores: Scores, options: PruneOptions, budget: Budget) -> Kept:
    """The channels of `graph` that are kept under the budget; groups without scores keep all. Raises
    SlimdeployError like `select`, and names the groups that can't be pruned.
    """
    groups = plan_groups(graph, options)
    scored = [group for group in groups if group.name in scores]
    removable = removable_blocks(graph, scored) if options.allow_block_removal else ()
    # A smaller step would save nothing by itself, so it would never be taken.
    align = math.lcm(options.alignment, budget.granularity)
    rules = Rules(align, options.min_channels, removable, unit_channels(groups))
    everything = {group.name: np.arange(group.width) for group in groups}
    costs = _WithFixed(budget.costs, {g.name: g.width for g in groups if g.name not in scores})
    try:
        return everything | select(scores, costs, budget.limit, rules, unit=budget.unit)
    except SlimdeployError as error:
        align_binds = _narrower(replace(rules, align=budget.granularity), rules, scored)
        why = _what_rounds(rules, options, scored, align_binds=align_binds)
        if not why:
            why = _default_alignment(options) if align_binds else ""
            why += _what_holds(graph, options, groups, scored)
        raise SlimdeployError(f"{error.message}{why}") from error


def _what_rounds(
    rules: Rules, options: PruneOptions, scored: list[ChannelGroup], *, align_binds: bool
) -> str:
    """The given options without which the narrowest layers would be narrower; `align_binds`: whether the
    alignment, given or not, is such a one.
    """
    usual = PruneOptions.min_channels
    found = []
    if options.min_channels > usual and _narrower(replace(rules, min_channels=usual), rules, scored):
        found.append(f"`min_channels` below {options.min_channels}")
    if options.align is not None and align_binds:
        found.append(f"`align` below {options.align}")
    return f"; {' and '.join(found)} allows narrower layers" if found else ""


def _default_alignment(options: PruneOptions) -> str:
    """The same for the alignment that the target sets, which may matter less than what holds channels."""
    return (
        f"; `align` below {options.alignment}, the default for `target` {options.target}, allows narrower "
        "layers"
    )


def _narrower(other: Rules, rules: Rules, scored: list[ChannelGroup]) -> bool:
    def narrowest(rules: Rules) -> int:
        return sum(rules.widths_below(group.name, group.width)[-1] for group in scored)

    return narrowest(other) < narrowest(rules)


def _what_holds(
    graph: Graph, options: PruneOptions, groups: list[ChannelGroup], scored: list[ChannelGroup]
) -> str:
    """Why channels can't be removed, for a budget out of reach."""
    if unscored := [group.name for group in groups if group not in scored]:
        return f"; `criterion` {options.criterion} leaves {_some(unscored)} whole (no BN)"
    tied = [group for group in channel_groups(graph, residual="couple") if group.residual]
    if options.residual == "keep" and tied:
        layers = _some(list(max(tied, key=lambda group: len(group.producers)).producers))
        return f"; `residual` keep excludes residual sums ({layers}): `residual` couple prunes them"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class _WithFixed:
    """Costs of widths, some of which are fixed."""

    costs: Costs
    fixed: Widths

    def total(self, widths: Widths) -> float:
        return self.costs.total({**self.fixed, **widths})

    def saving(self, widths: Widths, changes: Widths) -> float:
        return self.costs.saving({**self.fixed, **widths}, changes)
