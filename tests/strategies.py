"""Random networks for property tests."""

from __future__ import annotations

from hypothesis import strategies as st
from tiny import BASIC, DEEP

from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import STEMS, ChannelConfig, ResNet
from slimdeploy.toolchain.networks.graph import Graph


@st.composite
def network_specs(draw: st.DrawFn, *, removed_blocks: bool = True) -> Graph:
    """Either block kind, any stem, any consistent widths from 1 to 9, now and then a removed block."""
    arch = draw(st.sampled_from([DEEP, BASIC]))
    channels = draw(channel_configs(arch, removed_blocks=removed_blocks))
    return build_graph(
        arch.name,
        stem=draw(st.sampled_from(sorted(STEMS))),
        classes=draw(st.integers(1, 5)),
        channels=channels,
        shortcut_affine=draw(st.booleans()),
    )


@st.composite
def channel_configs(draw: st.DrawFn, arch: ResNet, *, removed_blocks: bool = True) -> ChannelConfig:
    """Widths that `arch` can have: within a layer all blocks agree on the last."""
    width = st.integers(1, 9)
    stem = out = draw(width)
    blocks = []
    for name in arch.block_names():
        if arch.has_projection(name):
            out = draw(width)
        inner = 2 if arch.bottleneck else 1
        removed = removed_blocks and draw(st.integers(0, 5)) == 0
        blocks.append(((0,) * inner if removed else tuple(draw(width) for _ in range(inner))) + (out,))
    return ChannelConfig(stem, tuple(blocks))
