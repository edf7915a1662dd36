"""The arithmetic of a latency table, and what tells layers apart."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimdeploy.toolchain.latency import networks as lut_networks
from slimdeploy.toolchain.latency.table import LatencyTable, shape_of
from slimdeploy.toolchain.networks.architectures import build_graph, channel_numbers
from slimdeploy.toolchain.networks.layers import convolutions

RESNET18 = build_graph("resnet18")


@settings(deadline=None)
@given(st.integers(1, 2048), st.integers(1, 2048), st.integers(0, 64), st.integers(0, 64))
def test_wider_never_costs_less(inputs, outputs, more_in, more_out):
    conv = convolutions(RESNET18, 32)[3]
    table = LatencyTable({}, 1, 16, 8.0, {shape_of(conv): (1e-3, 1e-5, 2e-5, 1e-7, 1e-8, 1e-8)}, (0, 0, 0))
    narrow = replace(conv, in_channels=inputs, out_channels=outputs)
    wide = replace(conv, in_channels=inputs + more_in, out_channels=outputs + more_out)
    assert table.conv_ms(narrow, streamed=0.5) <= table.conv_ms(wide, streamed=0.5)
    assert table.conv_ms(narrow) <= table.conv_ms(narrow, streamed=0.5)


def test_a_time_by_hand():
    conv = replace(convolutions(RESNET18, 32)[3], in_channels=20, out_channels=70)
    table = LatencyTable(
        {}, 1, 16, None, {shape_of(conv): (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-2)}, (3, 0.5, 0.25)
    )
    # 20 → 32 wide; 70 → 80, and 128 in blocks of 64
    expected = 1 + 0.1 * 32 + 0.01 * 80 + 1e-3 * 32 * 80 + 1e-4 * 32 * 128 + 1e-2 * 32 * 80 * 0.5
    assert table.conv_ms(conv, streamed=0.5) == pytest.approx(expected)
    assert table.rest_ms(stem=4, classifier_in=8) == 3 + 2 + 2
    profiled = replace(table, layer_ms=-0.5)
    assert profiled.conv_ms(conv, streamed=0.5) == pytest.approx(expected - 0.5)
    assert replace(table, layer_ms=-1000).conv_ms(conv) == 0


def test_shapes_tell_the_sum_apart():
    shapes = {conv.name: shape_of(conv) for conv in convolutions(build_graph("resnet50"), 32)}
    assert shapes["conv1"] == "3x3/1@32"
    assert shapes["layer1.1.conv1"] == "1x1/1@16"
    assert shapes["layer1.0.downsample.0"] == "1x1/1@16"
    assert shapes["layer1.1.conv3"] == "1x1/1@16+sum"
    assert shapes["layer2.0.conv2"] == "3x3/2@16"


def test_shapes_tell_dilations_and_groups_apart():
    conv = convolutions(RESNET18, 32)[3]
    assert shape_of(replace(conv, dilation=(2, 2), summed=False)) == "3x3/1@16 dilated 2"
    depthwise = replace(conv, groups=conv.in_channels, dilation=(1, 3), summed=False)
    assert shape_of(depthwise) == "3x3/1@16 of 1 dilated 1x3"


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_random_networks_are_aligned_and_no_wider(seed):
    full = build_graph("resnet50")
    widths = channel_numbers(lut_networks.random_network(full, random.Random(seed)))
    assert all(w % 8 == 0 and 0 < w <= whole for w, whole in zip(widths, channel_numbers(full), strict=True))
