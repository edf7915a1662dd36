"""Channels that can only be removed together: one group for each width that is free to shrink."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.errors import unknown
from slimdeploy.toolchain.networks.layers import Conv, Layers, enumerate_layers
from slimdeploy.toolchain.networks.spec import NetworkSpec

RESIDUAL_MODES = ("keep", "couple")
CLASSIFIER = "fc"


@dataclass(frozen=True)
class ChannelGroup:
    """`width` channels that are made by `producers` and read by `consumers`.

    Producers are sliced along their output channels with their BN, consumers along their inputs. `slots`
    are the positions in the flat channel configuration that hold this width. In a `residual` group the
    channels are sums over the blocks of a layer.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    batchnorms: tuple[str, ...]
    consumers: tuple[str, ...]
    slots: tuple[int, ...]
    residual: bool = False


def channel_groups(spec: NetworkSpec, *, residual: str = "keep") -> list[ChannelGroup]:
    """The prunable widths, in order of execution.

    With `residual="keep"` (the reference) these are the stem, and c1 and c2 of every block: the layers'
    outputs stay, and with them the stem of a basic-block network, which feeds the sum of layer1 without a
    projection. `"couple"` adds one group for each layer's residual stream. Raises SlimdeployError for
    another mode.
    """
    if residual not in RESIDUAL_MODES:
        raise unknown("residual mode", residual, RESIDUAL_MODES)
    layers = enumerate_layers(spec, 32)
    groups = []
    if spec.architecture.bottleneck:
        groups.append(
            ChannelGroup("stem", spec.channels.stem, ("conv1",), ("bn1",), _readers(layers, 0), (0,))
        )
    slot, streams = 1, _streams(spec, layers) if residual == "couple" else {}
    for index, (block, widths) in enumerate(zip(layers.blocks, spec.channels.blocks, strict=True)):
        for i, (conv, reader) in enumerate(zip(block.convs, block.convs[1:], strict=False)):
            groups.append(_inner(conv, reader, slot + i))
        slot += len(widths)
        if index in streams:
            groups.append(streams[index])
    return groups


def _inner(conv: Conv, reader: Conv, slot: int) -> ChannelGroup:
    return ChannelGroup(
        conv.name, conv.out_channels, (conv.name,), (conv.batchnorm,), (reader.name,), (slot,)
    )


def _readers(layers: Layers, index: int) -> tuple[str, ...]:
    """What reads the residual stream as it enters block `index`; behind the last block, the classifier."""
    if index == len(layers.blocks):
        return (CLASSIFIER,)
    block = layers.blocks[index]
    return tuple(conv.name for conv in (*block.convs[:1], block.shortcut) if conv)


def _streams(spec: NetworkSpec, layers: Layers) -> dict[int, ChannelGroup]:
    """Index of a layer's last block -> the group of that layer's residual stream."""
    arch, found, start = spec.architecture, {}, 0
    for number, depth in enumerate(arch.depths, start=1):
        blocks = layers.blocks[start : start + depth]
        writers = [conv for block in blocks for conv in (*block.convs[-1:], block.shortcut) if conv]
        per_block = len(spec.channels.blocks[0])
        slots = [1 + per_block * (i + 1) - 1 for i in range(start, start + depth)]
        readers = [name for i in range(start + 1, start + depth + 1) for name in _readers(layers, i)]
        if number == 1 and not arch.bottleneck:  # no projection: the stem writes the first part of the sum
            writers, slots, readers = [layers.stem, *writers], [0, *slots], [*_readers(layers, 0), *readers]
        found[start + depth - 1] = ChannelGroup(
            f"layer{number}",
            blocks[-1].out_channels,
            tuple(conv.name for conv in writers),
            tuple(conv.batchnorm for conv in writers),
            tuple(readers),
            tuple(slots),
            residual=True,
        )
        start += depth
    return found
