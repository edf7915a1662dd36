"""Means of adjacent channels, by which local response normalisation divides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimdeploy.tests.toolchain.networks.example_modules import Function, Net
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.graph import Graph, Node
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.operators import OPERATORS
from slimdeploy.toolchain.pruning.surgery import prune_network


class _FromCaffe(nn.Module):
    """As in ports of networks from Caffe."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.AvgPool3d(kernel_size=(5, 1, 1), stride=1, padding=(2, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        return x.div(self.average(x.pow(2).unsqueeze(1)).squeeze(1).mul(2.0).add(1.0).pow(0.75))


@pytest.mark.parametrize(
    "norm", [*(nn.LocalResponseNorm(window, alpha=3.0) for window in (1, 2, 3, 4, 5, 20)), _FromCaffe()]
)
@torch.no_grad()
def test_local_response_norm_is_taken_over_for_every_size(norm: nn.Module) -> None:
    module = Net(norm)
    network = from_module(module, size=16).network
    for size in (16, 20):
        images = 3 * torch.randn(2, 3, size, size)
        torch.testing.assert_close(network(images), module(images))


@torch.no_grad()
def test_the_channels_that_are_left_keep_their_neighbours() -> None:
    """Channels 0, 2, 3, 6 of eight, then the first, third and fourth of these: 0, 3, 6."""
    torch.manual_seed(0)
    middle = nn.Sequential(nn.BatchNorm2d(8), nn.LocalResponseNorm(4, alpha=3.0))
    network = from_module(Net(middle), size=16).network
    norm = network.get_submodule("middle.0")
    norm.weight.uniform_(0.5, 1)  # type: ignore[union-attr, operator]
    pruned = network
    for kept, left in (([0, 2, 3, 6], [0, 2, 3, 6]), ([0, 2, 3], [0, 3, 6])):
        (group,) = channel_groups(pruned.graph)
        pruned, folding = prune_network(pruned, [group], {group.name: np.array(kept)})
        norm.weight[[i for i in range(8) if i not in left]] = 0  # type: ignore[index, operator]
        images = torch.randn(3, 3, 16, 16)
        torch.testing.assert_close(pruned(images), network(images))
        assert not folding.lost
        pool = next(node for node in pruned.graph.nodes if node.operator == "channel_avg_pool")
        assert pool.attributes["positions"] == left


def test_its_values() -> None:
    node = Node("pool", "channel_avg_pool", ("x",), {"window": 4, "positions": [0, 2, 3, 7]})
    x = np.array([4.0, 8.0, 12.0, 16.0])  # two before and one behind: 0: {0}, 2: {0, 2, 3}, 3: {2, 3}, 7: {7}
    expected = [1.0, 6.0, 5.0, 4.0]
    found = OPERATORS["channel_avg_pool"].run(node, inplace=False)(torch.tensor(x).view(1, 4, 1, 1))
    assert found.flatten().tolist() == expected
    removed = np.zeros(4, bool)
    assert node.op.constant(node, [x], {}, removed).tolist() == expected
    x[3] = np.nan
    assert np.isnan(node.op.constant(node, [x], {}, removed)).tolist() == [False, False, False, True]


def test_positions_of_other_channels_are_refused() -> None:
    known = from_module(Net(Function(torch.relu)), size=16).network.graph
    pool = Node("pool", "channel_avg_pool", ("conv",), {"window": 3, "positions": [0, 1]})
    with pytest.raises(SlimdeployError, match="pool: 2 positions for 8 channels"):
        Graph((known.nodes[0], pool, *known.nodes[1:])).channels  # noqa: B018
