"""The channels that training has removed, for the checkpoint and `train --json`. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.graph import Graph


@dataclass(frozen=True)
class Removed:
    """Number of removed channels, and the savings."""

    channels: int
    of: int
    """Number of channels that could be removed: with `sparse_layers` all, those of residual sums too."""
    params: dict[str, int]
    macs: dict[str, int]
    """MACs of one image, `before` and `after` like `params`."""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def removed_from(before: Graph, after: Graph, size: int, *, residual: str) -> Removed | None:
    """The difference between two graphs, on images of `size` pixels; None if there is none. `residual` is the
    mode of `channel_groups` in which the channels were removed.
    """
    if before == after:
        return None
    costs = network_cost(before, size), network_cost(after, size)
    return Removed(
        channels=_prunable(before, "couple") - _prunable(after, "couple"),
        of=_prunable(before, residual),
        params={"before": costs[0].params, "after": costs[1].params},
        macs={"before": costs[0].macs, "after": costs[1].macs},
    )


def _prunable(graph: Graph, residual: str) -> int:
    return sum(group.width for group in channel_groups(graph, residual=residual))


def removed_channels(provenance: Sequence[Mapping[str, Any]]) -> int:
    """Prunable channels removed by training since the network was last pruned."""
    count = 0
    for entry in provenance:
        if entry.get("stage") == "prune":
            count = 0
        count += int((entry.get("removed") or {}).get("channels", 0))
    return count
