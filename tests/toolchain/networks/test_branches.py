"""Removing branches of sums: which can be removed, and that exactly they are missing then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimdeploy.toolchain.networks.branches import removable_branches
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.costs import mac_model, parameter_model
from slimdeploy.toolchain.pruning.selection import Rules, select
from slimdeploy.toolchain.pruning.surgery import prune_network

SIZE = 8


def _two() -> nn.Sequential:
    """Two convolutions; the channels between them are a group of their own."""
    return nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = _two(), _two(), _two()


class _BothSides(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


class _OfThree(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) + self.c(x)


class _LargeAndPixel(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x.mean((2, 3), keepdim=True))


class _Gated(_Block):
    """Without the channels inside its gate, the branch is not 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a[2](x[:, :6]) * self.b(x.mean((2, 3), keepdim=True)).sigmoid()


class _GateInside(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.a(x * self.b(x.mean((2, 3), keepdim=True)).sigmoid())


class _HalfOfAConcat(_Block):
    """`b` normalises its inner channels together, so that they stay."""

    def __init__(self) -> None:
        super().__init__()
        self.b[1] = nn.GroupNorm(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([self.a(x)[:, :4], self.b(x)[:, 4:]], 1)


class _Nested(_Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return x + self.c(y + self.b(y))


class _BatchNormFirst(_Block):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a(self.bn(x).relu())


def _network(block: type[_Block]) -> GraphNetwork:
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 8, 1), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))
    return from_module(nn.Sequential(stem, block(), nn.ReLU(), head), size=SIZE).network


@torch.no_grad()
def _without(network: GraphNetwork, end: str, images: Tensor) -> Tensor:
    """The logits if `end` were 0."""
    values = {"images": images}
    for step in network._steps:
        value = step.where[step.key](*[values[name].clone() for name in step.inputs])
        values[step.output] = value * (step.output != end)
    return values[network.graph.output]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (_BothSides, [("1.a.0",)]),
        (_OfThree, [("1.a.0",), ("1.a.0", "1.b.0")]),
        (_LargeAndPixel, [("1.b.0",)]),
        (_Gated, []),
        (_GateInside, [("1.b.0", "1.a.0")]),
        (_HalfOfAConcat, []),
        (_Nested, [("1.b.0",), ("1.a.0", "1.b.0", "1.c.0")]),
        (_BatchNormFirst, [("1.a.0",)]),
    ],
)
def test_a_removed_branch_is_missing_and_all_else_is_there(
    block: type[_Block], expected: list[tuple[str, ...]]
) -> None:
    network, images = _network(block), torch.randn(2, 3, SIZE, SIZE)
    graph, groups = network.graph, channel_groups(network.graph)
    branches = removable_branches(graph, groups)
    assert [branch.groups for branch in branches] == expected
    for branch in branches:
        kept = {g.name: np.arange(0 if g.name in branch.groups else g.width) for g in groups}
        pruned = prune_network(network, groups, kept)[0]
        torch.testing.assert_close(pruned(images), _without(network, branch.end, images))
        assert {node.name for node in pruned.graph.nodes[:-1]} <= pruned.graph.consumers.keys()
        cost, widths = network_cost(pruned.graph, SIZE), {name: len(own) for name, own in kept.items()}
        assert parameter_model(graph, groups, SIZE).total(widths) == cost.params
        assert mac_model(graph, groups, SIZE).total(widths) == cost.macs


@pytest.mark.parametrize("block", [_OfThree, _Nested, _GateInside])
def test_branches_inside_branches_go_first_and_come_back_last(block: type[_Block]) -> None:
    graph = _network(block).graph
    groups = channel_groups(graph)
    costs = parameter_model(graph, groups, SIZE)
    removable = tuple(branch.groups for branch in removable_branches(graph, groups))
    scores = {group.name: np.linspace(1, 2, group.width) for group in groups}
    least = costs.total({g.name: 0 if g.name in removable[-1] else 3 for g in groups})
    for limit in np.arange(least, costs.total({g.name: g.width for g in groups}), 7):
        kept = select(scores, costs, limit, Rules(removable=removable), unit="parameters")
        widths = {name: len(own) for name, own in kept.items()}
        assert costs.total(widths) <= limit
        inner, outer = removable[0] if len(removable) > 1 else (), removable[-1]
        rest = {widths[name] > 0 for name in set(outer) - set(inner)}
        assert len(rest) == 1, "the groups of a branch go together"
        assert rest == {True} or not any(widths[name] for name in inner)
