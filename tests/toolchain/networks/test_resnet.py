"""The networks themselves: torchvision's, weight for weight; any width; removed blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from strategies import network_specs
from tiny import DEEP, random_images, random_network
from torch import nn

from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import ChannelConfig
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import convolutions
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.torchvision import import_torchvision


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
@torch.no_grad()
def test_torchvision_state_dicts_load_both_ways(arch: str) -> None:
    theirs = getattr(import_torchvision().models, arch)(weights=None).eval()
    spec = build_graph(arch, stem="imagenet", classes=1000)
    ours = GraphNetwork(spec).eval()
    images = random_images(1, 64)
    theirs.load_state_dict(random_network(spec).state_dict())
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(images)
    assert expected.std() > 0.01, "logits that are all alike would prove nothing"
    tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(ours(images), expected, atol=tolerance, rtol=0)


@given(network_specs())
@torch.no_grad()
def test_every_layer_has_the_shape_listed(spec: Graph) -> None:
    network = random_network(spec)
    sizes: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, __, out, name=name: sizes.update({name: tuple(out.shape[1:])})
            )
    assert network(random_images(2, 24)).shape == (2, spec.classes)
    convs = convolutions(spec, 24)
    assert sizes == {conv.name: (conv.out_channels, *conv.out_size) for conv in convs}
    for conv in convs:
        assert network.weight(conv.name).numel() == conv.weights
        assert network.get_submodule(conv.batchnorm).affine is conv.affine


@torch.no_grad()
def test_a_removed_block_passes_its_shortcut_on() -> None:
    full = DEEP.full_channels()
    blocks = list(full.blocks)
    blocks[1] = (0, 0, blocks[1][-1])  # layer1.1, identity shortcut
    blocks[2] = (0, 0, blocks[2][-1])  # layer2.0, projection
    graph = build_graph(DEEP.name, channels=ChannelConfig(full.stem, tuple(blocks)))
    assert not [node.name for node in graph.nodes if node.name.startswith("layer1.1")]
    of_layer2 = [node for node in graph.nodes if node.name.startswith("layer2.0")]
    assert [node.operator for node in of_layer2] == ["conv", "batchnorm", "relu"]
    assert of_layer2[0].inputs == ("layer1.0.relu",)
    assert GraphNetwork(graph)(random_images(2, 16)).shape == (2, 10)


def test_a_network_with_removed_blocks_can_be_trained() -> None:
    blocks = ((4, 4, 8),) * 14 + ((0, 0, 8),) * 2  # one after the other: two identities in a row
    network = random_network(build_graph("resnet50", channels=ChannelConfig(4, blocks))).train()
    network(random_images(4, 16)).logsumexp(dim=1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_seed_decides_the_weights_and_nothing_else() -> None:
    spec = build_graph("tiny")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (build_network(spec, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected), "building must not disturb torch's own generator"
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_every_fresh_block_starts_as_its_shortcut() -> None:
    for name, module in build_network(build_graph("tiny-deep"), seed=0).named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            last = name.endswith(".bn3")
            assert torch.equal(module.weight, torch.full_like(module.weight, 0.0 if last else 1.0)), name
