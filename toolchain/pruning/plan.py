"""From options and evidence to the channels that stay: what to score, what to count, how far to go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.networks.spec import NetworkSpec
from slimdeploy.toolchain.pruning.costs import ChannelCount, mac_model, parameter_model
from slimdeploy.toolchain.pruning.criteria.registry import Evidence, Moments, channel_scores
from slimdeploy.toolchain.pruning.groups import ChannelGroup, channel_groups
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.selection import Costs, Kept, Rules, select

Scores = dict[str, np.ndarray]
"""Group name -> importance of each of its channels, in one unit for all groups."""


@dataclass(frozen=True)
class Budget:
    """At most `limit` by `costs`, in `unit`."""

    costs: Costs
    limit: float
    unit: str


def budget_for(spec: NetworkSpec, groups: list[ChannelGroup], options: PruneOptions, size: int) -> Budget:
    """The budget that `options` set for a network of `spec` on images of `size` pixels."""
    if options.params is not None:
        return Budget(parameter_model(spec, groups), options.params, "parameters")
    if options.macs is not None:
        return Budget(mac_model(spec, groups, size), options.macs, "MACs")
    if options.latency_ms is not None and options.latency_table is not None:
        from slimdeploy.benchmarks.lut import load_table
        from slimdeploy.toolchain.pruning.latency import latency_model

        table = load_table(options.latency_table)
        return Budget(latency_model(table, spec, groups, size), options.latency_ms, "ms")
    assert options.ratio is not None
    channels = sum(group.width for group in groups)
    return Budget(ChannelCount(), channels - int(channels * options.ratio), "prunable channels")


def plan_groups(spec: NetworkSpec, options: PruneOptions) -> list[ChannelGroup]:
    """The groups that `options` let shrink."""
    return channel_groups(spec, residual=options.residual)


def score_channels(network: ResNet, moments: Moments | None, options: PruneOptions) -> Scores:
    """Importance of each channel of every group that may shrink; raises SlimdeployError as the criterion
    does.
    """
    groups = plan_groups(network.spec, options)
    return channel_scores(Evidence(network, moments, options.seed), groups, options.criterion)


def choose_channels(spec: NetworkSpec, scores: Scores, options: PruneOptions, budget: Budget) -> Kept:
    """The channels of a network of `spec` that stay under the budget; raises SlimdeployError as `select`
    does.
    """
    removable = _blocks(plan_groups(spec, options)) if options.allow_block_removal else ()
    rules = Rules(options.alignment, options.min_channels, removable)
    return select(scores, budget.costs, budget.limit, rules, unit=budget.unit)


def _blocks(groups: list[ChannelGroup]) -> tuple[tuple[str, ...], ...]:
    """The inner groups of each block: `layer1.0.conv1` and `layer1.0.conv2` go together."""
    blocks: dict[str, list[str]] = {}
    for group in groups:
        if not group.residual and "." in group.name:
            blocks.setdefault(group.name.rpartition(".")[0], []).append(group.name)
    return tuple(tuple(names) for names in blocks.values())
