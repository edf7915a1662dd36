"""Costs against the known figures, and against a real network of any configuration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import network_specs
from torch import nn

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import RESNETS, ChannelConfig, channel_config
from slimdeploy.toolchain.networks.cost import MB, network_cost, round_up
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork

FUNCTIONS = ("relu", "max_pool", "add", "adaptive_avg_pool")
"""Operators that are functions, not modules with hooks."""
PUBLISHED = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


@pytest.mark.parametrize(("arch", "params"), PUBLISHED.items())
def test_parameters_are_those_published(arch: str, params: int) -> None:
    spec = build_graph(arch, stem="imagenet", classes=1000)
    with torch.device("meta"):
        network = GraphNetwork(spec)
    assert network_cost(spec, 224).params == params
    assert sum(p.numel() for p in network.parameters()) == params


def test_reference_network() -> None:
    cost = network_cost(build_graph(), 32)
    assert cost.params == 23_513_162
    assert cost.module_calls == 174
    memory = cost.memory
    assert [round(mb, 2) for mb in (memory.input, memory.activations, memory.params)] == [0.01, 23.41, 89.70]
    assert memory.total == memory.input + memory.activations + memory.params
    assert round(cost.macs / 1e6, 1) == 325.8
    assert round(network_cost(build_graph(stem="cifar"), 32).macs / 1e6, 1) == 1297.8


def test_a_tenth_of_every_prunable_width() -> None:
    """Widths ×0.1, 3.84 M parameters and 40.9 M MACs; to multiples of 8: 3.81 M and 42.9 M."""
    arch = RESNETS["resnet50"]

    def costs(width_of) -> tuple[float, float]:
        full = arch.full_channels()
        blocks = tuple((width_of(c1), width_of(c2), c3) for c1, c2, c3 in full.blocks)
        cost = network_cost(build_graph(channels=ChannelConfig(width_of(full.stem), blocks)), 32)
        return round(cost.params / 1e6, 2), round(cost.macs / 1e6, 1)

    assert costs(lambda width: int(width * 0.1)) == (3.84, 40.9)
    assert costs(lambda width: max(8, round(width * 0.1 / 8) * 8)) == (3.81, 42.9)


@given(network_specs(), st.sampled_from([8, 17, 32]))
def test_costs_are_those_of_the_network(spec: Graph, size: int) -> None:
    outputs, macs = _run_on_meta(spec, size)
    cost = network_cost(spec, size, alignment=1)
    others = [math.prod(spec.shapes(size)[n.name]) for n in spec.nodes if n.operator in FUNCTIONS]
    assert cost.module_calls == len(outputs) + len(others)
    assert cost.memory.activations * MB == pytest.approx((sum(outputs) + sum(others)) * 4 * 2)
    assert cost.macs == cost.padded_macs == macs
    with torch.device("meta"):
        assert cost.params == sum(p.numel() for p in GraphNetwork(spec).parameters())


def _run_on_meta(spec: Graph, size: int) -> tuple[list[int], int]:
    """Elements of every module call's output, and multiply-accumulates, as hooks see them for one image."""
    outputs: list[int] = []
    macs = 0

    def watch(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal macs
        outputs.append(output.numel())
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel()

    with torch.device("meta"):
        network = GraphNetwork(spec).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                module.register_forward_hook(watch)
        network(torch.empty(1, 3, size, size))
    return outputs, macs


@given(network_specs())
def test_padded_macs_are_those_of_the_padded_network(spec: Graph) -> None:
    channels = channel_config(spec)
    blocks = tuple(tuple(round_up(width, 8) for width in block) for block in channels.blocks)
    wide = ChannelConfig(round_up(channels.stem, 8), blocks)
    padded = build_graph(spec.arch, stem=spec.origin["stem"], classes=spec.classes, channels=wide)
    classifier = spec.classes * (blocks[-1][-1] - channels.blocks[-1][-1])
    assert network_cost(spec, 32, alignment=8).padded_macs == network_cost(padded, 32).macs - classifier


def test_rounding_up() -> None:
    assert [round_up(width, 8) for width in (1, 8, 9, 25)] == [8, 8, 16, 32]


def test_small_images_are_refused() -> None:
    assert build_graph().shapes(8)["layer4.2.relu"] == (2048, 1, 1)
    with pytest.raises(SlimdeployError, match=r"images of 7×7 are too small: the minimum is 8"):
        build_graph().shapes(7)
