"""Importing foreign modules: their structure, their behaviour in training, and the comparison."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimdeploy.tests.toolchain.networks.example_modules import Function, Net
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.torchvision import import_torchvision


def _mbconv_settings() -> tuple[Any]:
    from torchvision.models.efficientnet import MBConvConfig

    return (MBConvConfig(2, 3, 1, 8, 8, 1, 1.0, 1.0),)


def test_a_layer_of_several_calls_is_one_layer() -> None:
    """Multi-sample dropout (Inoue, arXiv 1905.09788): the last layer is called on several dropouts."""

    class Samples(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu().mean((2, 3))
            samples = [self.fc(self.middle(x)) for _ in range(4)]
            return (torch.stack(samples).mean(0) + sum(samples) / 4) / 2

    module = Samples(nn.Dropout())
    network = from_module(module, size=16).network
    assert network.state_dict().keys() == module.state_dict().keys()
    images = torch.randn(2, 3, 16, 16)
    network.train()
    assert not torch.equal(network(images), network(images))


def test_the_stride_of_a_layer_of_several_calls_skips_none_of_them() -> None:
    layer = nn.Conv2d(8, 8, 1, stride=2)
    both = Function(lambda x: layer(x.mean((2, 3), True)) + layer(x.amax((2, 3), True)))
    both.layer = layer
    assert from_module(Net(both), size=16).relative_error < 1e-5


def test_a_layer_of_several_calls_needs_single_pixels_at_every_size() -> None:
    """Its images have one pixel at the size of the import only: elsewhere the calls would be mixed."""
    layer = nn.Conv2d(8, 8, 1)
    both = Function(lambda x: layer(x) + layer(x.relu()))
    both.layer = layer
    graph = from_module(Net(nn.Sequential(nn.MaxPool2d(16), both)), size=16).network.graph
    with pytest.raises(SlimdeployError, match="expects another image size: 2×2 pixels"):
        graph.shapes(32)


def test_a_module_may_keep_a_table_for_the_size_of_its_images() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            if len(self.places) != x.shape[2]:
                self.places = torch.arange(x.shape[2])
            return x * self.places.sum()

    assert from_module(Net(Table()), size=16).relative_error < 1e-5


def test_a_layer_may_be_called_like_an_operator() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add, self.concat = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 8, 1)
            self.dropout = nn.Sequential(nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.add(x + x)
            x = self.concat(torch.cat([x, x.sigmoid()], 1))
            return nn.functional.dropout(self.dropout(x.mean((2, 3))), training=self.training)

    module = Named()
    assert from_module(module, size=16).network.state_dict().keys() == module.state_dict().keys()


def test_one_logit_is_taken_as_two() -> None:
    """As the error for a binary classifier advises."""
    single = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    )
    both = nn.Sequential(single, Function(lambda x: torch.cat([-x / 2, x / 2], 1)))
    network, images = from_module(both, size=16).network, torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(network(images).softmax(1)[:, 1:], single(images).sigmoid())


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.Dropout2d(0.5)], ids=str)
@torch.no_grad()
def test_dropout_drops_the_same_in_training(dropout: nn.Module) -> None:
    module = Net(dropout)
    found, images = from_module(module, size=16).network.train(), torch.randn(4, 3, 16, 16)
    logits = []
    for one in (module.train(), found):
        torch.manual_seed(5)
        logits.append(one(images))
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(-1), nn.Sigmoid()], ids=str)
@torch.no_grad()
def test_a_softmax_or_sigmoid_at_the_end_is_left_out(end: nn.Module) -> None:
    module = nn.Sequential(Net(nn.ReLU()), end)
    found, images = from_module(module, size=16), torch.randn(3, 3, 16, 16)
    assert found.network.graph.nodes[-1].operator == "linear"
    torch.testing.assert_close(end(found.network(images)), module(images))
    assert bool(found.remarks) == isinstance(end, nn.Sigmoid)


def test_rounding_that_a_network_amplifies_is_told_from_another_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, forward = Net(nn.ReLU()), GraphNetwork.forward

    def rounded(network: GraphNetwork, images: Tensor) -> Tensor:
        found = forward(network, images)
        return found * (1 + 1e-3) if found.dtype == torch.float32 else found

    monkeypatch.setattr(GraphNetwork, "forward", rounded)
    assert from_module(module, size=16).relative_error == pytest.approx(1e-3, rel=0.1)
    monkeypatch.setattr(
        GraphNetwork, "forward", lambda network, images: forward(network, images) * (1 + 1e-3)
    )
    with pytest.raises(SlimdeployError, match=r"logits differ from the module's by 1\.0e-03"):
        from_module(module, size=16)


def test_a_bn_without_a_counter_of_batches() -> None:
    norm, images = nn.BatchNorm2d(8), torch.randn(3, 3, 16, 16)
    del norm.num_batches_tracked
    norm.num_batches_tracked = None
    module = Net(norm).eval()
    torch.testing.assert_close(from_module(module, size=16).network(images), module(images))


class _ScaledBefore(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(8, 8, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)


def test_a_layer_may_scale_its_input_by_a_parameter_of_its_own() -> None:
    module, images = Net(_ScaledBefore()), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(from_module(module, size=16).network(images), module(images))


class _Apart(nn.Conv2d):
    """A convolution that adds its bias in another call, to its output or, if not `alone`, to another one."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__(8, 8, 1)
        self.alone = alone

    def forward(self, x: Tensor) -> Tensor:
        y, bias = nn.functional.conv2d(x, self.weight), self.bias.view(1, -1, 1, 1)
        return y + bias if self.alone else y * (y + bias)


@pytest.mark.parametrize("alone", [True, False])
@torch.no_grad()
def test_a_bias_that_is_added_in_another_call_is_added_once(alone: bool) -> None:
    module, images = Net(_Apart(alone=alone)), torch.randn(3, 3, 16, 16)
    network = from_module(module, size=16).network
    torch.testing.assert_close(network(images), module(images))
    assert network.graph.by_name["middle"].attributes["bias"] == alone


@pytest.mark.parametrize("gamma", [0, 1e-6])
@pytest.mark.parametrize("same", [True, False])
def test_a_branch_that_is_scaled_by_almost_nothing_is_compared(gamma: float, same: bool) -> None:
    """Repeating one pixel before a padded convolution isn't taken over: only the logits tell it."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            nn.init.constant_(self.norm.weight, gamma)

        def forward(self, x: Tensor) -> Tensor:
            gate = x.mean((2, 3), True).expand_as(x) * (x if same else x.amax((2, 3), True))
            return x + self.norm(self.conv(gate))

    module = Net(Branch())
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if same:
        network = from_module(module, size=16).network
        assert torch.all(network.get_submodule("middle.norm").weight == gamma)  # type: ignore[arg-type]
    else:
        with pytest.raises(SlimdeployError, match="logits differ"):
            from_module(module, size=16)
    torch.testing.assert_close(module.state_dict(), weights, rtol=0, atol=0)


def test_a_stochastic_depth_with_two_names_is_taken_over_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = import_torchvision().ops.StochasticDepth(0.5, "row")

        def forward(self, x: Tensor) -> Tensor:
            return x + self.one(x.relu()) + self.other(x.sigmoid())

    graph = from_module(Net(Shared()), size=16).network.graph
    assert [node.operator for node in graph.nodes].count("stochastic_depth") == 2


def test_stochastic_depth_is_taken_over() -> None:
    module = import_torchvision().models.efficientnet.MBConv(
        *_mbconv_settings(), stochastic_depth_prob=0.25, norm_layer=nn.BatchNorm2d
    )
    network = from_module(Net(module), size=16).network
    (node,) = (node for node in network.graph.nodes if node.operator == "stochastic_depth")
    assert (node.name, node.attributes["share"]) == ("middle.stochastic_depth", 0.25)
    branch = network.get_submodule(node.name).train()
    torch.manual_seed(0)
    found = branch(torch.ones(400, 2, 3, 3)).flatten(1)
    torch.testing.assert_close(found.unique(), torch.tensor([0, 4 / 3]))
    assert (found[:, :1] == found).all()
    assert 0.15 < (found[:, 0] == 0).float().mean() < 0.35
