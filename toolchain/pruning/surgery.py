"""The cut itself: a network without the channels that were not kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain.networks.channels import ChannelConfig
from slimdeploy.toolchain.networks.layers import Conv, enumerate_layers
from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.networks.spec import NetworkSpec
from slimdeploy.toolchain.pruning.activations import InputMoments
from slimdeploy.toolchain.pruning.compensation import compensate
from slimdeploy.toolchain.pruning.groups import CLASSIFIER, ChannelGroup
from slimdeploy.toolchain.pruning.selection import Kept

State = dict[str, Tensor]


@dataclass(frozen=True)
class Folding:
    """What became of the constants ReLU(β) that removed channels still passed on."""

    channels: int
    """Removed channels that passed on something."""
    exact: tuple[str, ...]
    """Convolutions whose BN took the constants up exactly."""
    approximate: tuple[str, ...]
    """3×3 convolutions, where zero padding makes the constants differ at the border: folded as inside it."""


NOTHING_FOLDED = Folding(0, (), ())


def pruned_spec(spec: NetworkSpec, groups: list[ChannelGroup], kept: Kept) -> NetworkSpec:
    """`spec` at the widths that `kept` leaves; a block none of whose channels stay is removed."""
    flat = list(spec.channels.flat())
    for group in groups:
        for slot in group.slots:
            flat[slot] = len(kept[group.name])
    return spec.with_channels(ChannelConfig.from_flat(spec.architecture, flat))


@torch.no_grad()
def prune_network(
    network: ResNet, groups: list[ChannelGroup], kept: Kept, *, fold: bool = True
) -> tuple[ResNet, Folding]:
    """A new network that holds only the kept channels; `network` stays as it is.

    Without `fold` it computes what `network` computes with γ and β of the removed channels at zero. With
    it, what it computes with only γ at zero: the constant ReLU(β) of each removed channel moves into the
    running mean of the BN behind the next convolution, exact behind 1×1 convolutions and inside the image
    behind 3×3 ones. Channels of a residual stream are sums and pass on no constant.
    """
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folding = _fold_constants(network, state, groups, kept) if fold else NOTHING_FOLDED
    for group in groups:
        for consumer in group.consumers:
            _slice(state, f"{consumer}.weight", 1, kept[group.name])
    return _cut_outputs(network, state, groups, kept), folding


@torch.no_grad()
def prune_compensated(
    network: ResNet, groups: list[ChannelGroup], kept: Kept, moments: dict[str, InputMoments]
) -> ResNet:
    """As `prune_network`, but what the removed channels carried is taken over by the kept ones where it can
    be.

    `moments` of every layer that reads a group's channels: see compensation.compensate.
    """
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    convs = _convs(network)
    for group in groups:
        if len(kept[group.name]) in (
            0,
            group.width,
        ):  # a removed block reads nothing; a whole group lost nothing
            continue
        for consumer in group.consumers:
            weight = network.reader_weight(consumer)
            found = compensate(weight, moments[consumer], torch.from_numpy(kept[group.name]))
            state[f"{consumer}.weight"] = found.weight.to(weight.device)
            _add_constant(state, convs.get(consumer), found.shift)
    return _cut_outputs(network, state, groups, kept)


def _cut_outputs(network: ResNet, state: State, groups: list[ChannelGroup], kept: Kept) -> ResNet:
    """The network of `state` once the outputs of the removed channels are gone too."""
    for group in groups:
        for producer, batchnorm in zip(group.producers, group.batchnorms, strict=True):
            _slice(state, f"{producer}.weight", 0, kept[group.name])
            for part in ("weight", "bias", "running_mean", "running_var"):
                if f"{batchnorm}.{part}" in state:
                    _slice(state, f"{batchnorm}.{part}", 0, kept[group.name])
    pruned = ResNet(pruned_spec(network.spec, groups, kept))
    pruned.load_state_dict(
        {name: state[name] for name in pruned.state_dict()}
    )  # less what removed blocks held
    return pruned.train(network.training)


def _slice(state: State, name: str, axis: int, kept: np.ndarray) -> None:
    tensor = state[name]
    if len(kept) < tensor.shape[axis]:
        indices = torch.from_numpy(kept).to(tensor.device)
        state[name] = tensor.index_select(axis, indices).contiguous()


def _fold_constants(network: ResNet, state: State, groups: list[ChannelGroup], kept: Kept) -> Folding:
    convs, channels, touched = _convs(network), 0, []
    for group in groups:
        if group.residual or not len(kept[group.name]):
            continue
        constants = _removed_constants(network, group, kept[group.name])
        channels += int((constants > 0).sum())
        for consumer in group.consumers if constants.any() else ():
            weight = state[f"{consumer}.weight"].double()
            _add_constant(state, convs[consumer], weight.sum((2, 3)) @ constants)
            touched.append(convs[consumer])
    return Folding(
        channels,
        exact=tuple(conv.name for conv in touched if conv.kernel == 1),
        approximate=tuple(conv.name for conv in touched if conv.kernel > 1),
    )


def _removed_constants(network: ResNet, group: ChannelGroup, kept: np.ndarray) -> Tensor:
    """(width,) float64: ReLU(β) of each removed channel, 0 for the kept ones."""
    (batchnorm,) = group.batchnorms
    constants = torch.relu(network.batchnorm(batchnorm).bias.double()).clone()
    constants[torch.from_numpy(kept).to(constants.device)] = 0
    return constants


def _add_constant(state: State, conv: Conv | None, shift: Tensor) -> None:
    """Add `shift` (O,) to a convolution's outputs through the BN behind it, which subtracts its mean; for the
    classifier (None), through its bias.
    """
    name, sign = (f"{conv.batchnorm}.running_mean", -1) if conv else (f"{CLASSIFIER}.bias", 1)
    target = state[name]
    state[name] = (target.double() + sign * shift.to(target.device)).to(target.dtype)


def _convs(network: ResNet) -> dict[str, Conv]:
    return {conv.name: conv for conv in enumerate_layers(network.spec, 32).convs()}
