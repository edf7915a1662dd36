"""Branches of sums that can be removed whole. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slimdeploy.toolchain.networks.channel_groups import ChannelGroup
from slimdeploy.toolchain.networks.cutting import emptied, keep_masks
from slimdeploy.toolchain.networks.graph import Graph, Node


@dataclass(frozen=True)
class Branch:
    """The input `end` of a sum, which is removed if all `groups` become 0."""

    end: str
    groups: tuple[str, ...]


def removable_branches(
    graph: Graph, groups: list[ChannelGroup], *, allowed: Callable[[str], bool] = lambda end: True
) -> list[Branch]:
    """The branches that can be removed, those of a sum also together; only those whose end is `allowed`.

    Each sum keeps an input of its full size: the last one, if all could be removed.
    """
    found: list[Branch] = []
    for add in (node for node in graph.nodes if node.operator == "add"):
        ends = dict.fromkeys(add.inputs)
        branches = {end: _branch(graph, groups, add, end) for end in ends if allowed(end)}
        removable = {end: branch for end, branch in branches.items() if branch}
        full = [end for end in ends if end not in graph.single_pixels or add.name in graph.single_pixels]
        if removable.keys() >= set(full):
            del removable[full[-1]]
        found += removable.values()
    return found


def removable_blocks(graph: Graph, groups: list[ChannelGroup]) -> tuple[tuple[str, ...], ...]:
    """For each removable branch of a residual sum: the names of the groups inside it, which become 0
    together.
    """
    return tuple(branch.groups for branch in removable_branches(graph, groups))


def _branch(graph: Graph, groups: list[ChannelGroup], add: Node, end: str) -> Branch | None:
    """The branch with this end, if nothing is left of it, and nothing else is lost, without its groups."""
    inside = _exclusive(graph, add, end)
    inner = [group for group in groups if not group.residual and inside.issuperset(group.producers)]
    gone = emptied(graph, keep_masks(graph, inner, {group.name: np.arange(0) for group in inner}))
    if end not in gone or not inside.issuperset(gone):
        return None
    return Branch(end, tuple(group.name for group in inner))


def _exclusive(graph: Graph, add: Node, end: str) -> set[str]:
    """Names of the nodes that serve only the input `end` of a sum and are not needed without it. Empty if
    `end` is an identity shortcut.
    """
    branch: set[str] = set()
    waiting = [end]
    while waiting:
        node = graph.producer(waiting.pop())
        if node is None or node.name in branch:
            continue
        readers = graph.consumers[node.name]
        if all(reader.name in branch or (reader is add and node.name == end) for reader in readers):
            branch.add(node.name)
            waiting += node.inputs
    return branch
