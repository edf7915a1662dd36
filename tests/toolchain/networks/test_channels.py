"""Channel configurations and specs: round trips, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import channel_configs, network_specs
from tiny import BASIC, DEEP

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import ARCHITECTURES, build_graph, read_network
from slimdeploy.toolchain.networks.architectures.resnet import (
    RESNETS,
    ChannelConfig,
    ResNet,
    channel_config,
    register,
)
from slimdeploy.toolchain.networks.graph import Graph


@given(st.sampled_from([DEEP, BASIC]).flatmap(lambda arch: st.tuples(st.just(arch), channel_configs(arch))))
def test_flat_form_round_trip(drawn: tuple[ResNet, ChannelConfig]) -> None:
    arch, channels = drawn
    channels.check(arch)
    assert ChannelConfig.from_flat(arch, list(channels.flat())) == channels


@given(network_specs())
def test_json_round_trip(spec: Graph) -> None:
    assert Graph.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(network_specs())
def test_format_1_says_the_same_network(spec: Graph) -> None:
    """Files of the first format hold a channel configuration."""
    document = {**spec.origin, "classes": spec.classes, "channels": list(channel_config(spec).flat())}
    assert read_network(document) == spec


def test_reference_configuration() -> None:
    flat = RESNETS["resnet50"].full_channels().flat()
    assert len(flat) == 49
    assert flat[:7] == (64, 64, 64, 256, 64, 64, 256)
    assert flat[-3:] == (512, 512, 2048)
    assert RESNETS["resnet18"].full_channels().flat() == (
        64,
        *[64] * 4,
        *[128] * 4,
        *[256] * 4,
        *[512] * 4,
    )


def _with(arch: str, slot: int, value: int) -> ChannelConfig:
    known = RESNETS[arch]
    flat = list(known.full_channels().flat())
    flat[slot] = value
    return ChannelConfig.from_flat(known, flat)


INNER = "expected at least 1 each (or 0 for all: block removed)"


@pytest.mark.parametrize(
    ("arch", "slot", "value", "message"),
    [
        ("resnet50", 6, 255, "layer1.1: 255 output channels, expected 256 (what its shortcut carries)"),
        ("resnet50", 48, 2047, "layer4.2: 2047 output channels, expected 2048 (what its shortcut carries)"),
        # The first block of a layer decides the width; the second is where it contradicts.
        ("resnet50", 3, 128, "layer1.1: 256 output channels, expected 128 (what its shortcut carries)"),
        ("resnet18", 0, 32, "layer1.0: 64 output channels, expected 32 (what its shortcut carries)"),
        ("resnet18", 2, 60, "layer1.0: 60 output channels, expected 64 (what its shortcut carries)"),
        ("resnet50", 0, 0, "stem: 0 channels, expected at least 1"),
        ("resnet50", 3, 0, "layer1.0: 0 output channels, expected at least 1"),
        ("resnet50", 4, 0, "layer1.1: inner widths [0, 64], " + INNER),
        ("resnet50", 5, -1, "layer1.1: inner widths [64, -1], " + INNER),
    ],
)  # fmt: skip
def test_contradictions_name_block_value_and_expectation(
    arch: str, slot: int, value: int, message: str
) -> None:
    with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}$"):
        build_graph(arch, channels=_with(arch, slot, value))


def test_other_numbers_of_blocks_and_channels_are_refused() -> None:
    bottleneck = RESNETS["resnet50"]
    with pytest.raises(SlimdeployError, match="resnet50 needs 49 channel numbers, not 48"):
        ChannelConfig.from_flat(bottleneck, [8] * 48)
    with pytest.raises(SlimdeployError, match="resnet50 has 16 blocks, the channel configuration 33"):
        build_graph("resnet50", channels=RESNETS["resnet101"].full_channels())
    for odd in (8.0, True, "8"):
        with pytest.raises(SlimdeployError, match="channel numbers must be whole numbers"):
            ChannelConfig.from_flat(bottleneck, [odd] * 49)


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(
        SlimdeployError, match=r"unknown arch 'resnet5O'; known: .*\. Did you mean 'resnet50'\?"
    ):
        build_graph("resnet5O")
    with pytest.raises(
        SlimdeployError, match=r"unknown stem 'cifarpool'; known: .*\. Did you mean 'cifar-pool'\?"
    ):
        build_graph(stem="cifarpool")
    with pytest.raises(SlimdeployError, match="a network needs at least 1 class, not 0"):
        build_graph(classes=0)


@pytest.mark.parametrize(("stem", "affine"), [("cifar-pool", False), ("cifar", False), ("imagenet", True)])
def test_shortcut_batchnorm_follows_the_stem_unless_told(stem: str, affine: bool) -> None:
    for told in (None, True, False):
        graph = build_graph(stem=stem, shortcut_affine=told)
        expected = affine if told is None else told
        assert graph.by_name["layer1.0.downsample.1"].attributes["affine"] is expected


def test_another_architecture_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet26", None)  # put back afterwards
    register(ResNet("resnet26", True, (2, 2, 2, 2)))
    assert len(channel_config(build_graph("resnet26")).flat()) == 25
