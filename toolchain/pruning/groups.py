"""Channels that can only be removed together: one group for each width that is free to shrink."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.networks.layers import Conv, enumerate_layers
from slimdeploy.toolchain.networks.spec import NetworkSpec


@dataclass(frozen=True)
class ChannelGroup:
    """`width` channels that are made by `producers` and read by `consumers`.

    Producers are sliced along their output channels with their BN, consumers along their inputs (`fc` is
    one). `slots` are the positions in the flat channel configuration that hold this width.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    batchnorms: tuple[str, ...]
    consumers: tuple[str, ...]
    slots: tuple[int, ...]


def channel_groups(spec: NetworkSpec) -> list[ChannelGroup]:
    """The prunable widths in order: stem, c1 and c2 of every block; the layers' outputs stay (the reference).

    A basic-block network's stem feeds the residual sum of layer1 without a projection, so it stays too.
    """
    layers = enumerate_layers(spec, 32)
    groups = []
    if spec.architecture.bottleneck:
        first = layers.blocks[0]
        readers = tuple(c.name for c in (*first.convs[:1], first.shortcut) if c)
        groups.append(ChannelGroup("stem", spec.channels.stem, ("conv1",), ("bn1",), readers, (0,)))
    slot = 1
    for block, widths in zip(layers.blocks, spec.channels.blocks, strict=True):
        for i, (conv, reader) in enumerate(zip(block.convs, block.convs[1:], strict=False)):
            groups.append(_inner(conv, reader, slot + i))
        slot += len(widths)
    return groups


def _inner(conv: Conv, reader: Conv, slot: int) -> ChannelGroup:
    return ChannelGroup(
        conv.name, conv.out_channels, (conv.name,), (conv.batchnorm,), (reader.name,), (slot,)
    )
