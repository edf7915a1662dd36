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
from slimdeploy.toolchain.pruning.groups import ChannelGroup
from slimdeploy.toolchain.pruning.selection import Kept


@dataclass(frozen=True)
class Folding:
    """What became of the constants ReLU(β) that removed channels still passed on."""

    channels: int
    """Removed channels that passed on something."""
    exact: tuple[str, ...]
    """Convolutions whose BN took the constants up exactly."""
    approximate: tuple[str, ...]
    """3×3 convolutions, where zero padding makes the constants differ at the border: folded as inside the
    image.
    """


def pruned_spec(spec: NetworkSpec, groups: list[ChannelGroup], kept: Kept) -> NetworkSpec:
    """`spec` at the widths that `kept` leaves."""
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
    `fold`, what it computes with only γ at zero: the constant ReLU(β) of each removed channel moves into
    the running mean of the BN behind the next convolution, exact behind 1×1 convolutions and inside the
    image behind 3×3 ones.
    """
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folding = _fold_constants(network, state, groups, kept) if fold else Folding(0, (), ())
    for group in groups:
        indices = torch.from_numpy(kept[group.name])
        for producer, batchnorm in zip(group.producers, group.batchnorms, strict=True):
            _slice(state, f"{producer}.weight", 0, indices)
            for part in ("weight", "bias", "running_mean", "running_var"):
                if f"{batchnorm}.{part}" in state:
                    _slice(state, f"{batchnorm}.{part}", 0, indices)
        for consumer in group.consumers:
            _slice(state, f"{consumer}.weight", 1, indices)
    pruned = ResNet(pruned_spec(network.spec, groups, kept))
    pruned.load_state_dict(state)
    return pruned.train(network.training), folding


def _slice(state: dict[str, Tensor], name: str, axis: int, indices: Tensor) -> None:
    tensor = state[name]
    if len(indices) < tensor.shape[axis]:
        state[name] = tensor.index_select(axis, indices.to(tensor.device)).contiguous()


def _fold_constants(
    network: ResNet, state: dict[str, Tensor], groups: list[ChannelGroup], kept: Kept
) -> Folding:
    convs = {conv.name: conv for conv in enumerate_layers(network.spec, 32).convs()}
    channels, touched = 0, []
    for group in groups:
        constants = _removed_constants(network, group, kept[group.name])
        if not constants.any():
            continue
        channels += int((constants > 0).sum())
        for consumer in group.consumers:
            _shift_running_mean(state, convs[consumer], constants)
            touched.append(convs[consumer])
    return Folding(
        channels,
        exact=tuple(conv.name for conv in touched if conv.kernel == 1),
        approximate=tuple(conv.name for conv in touched if conv.kernel > 1),
    )


def _removed_constants(network: ResNet, group: ChannelGroup, kept: np.ndarray) -> Tensor:
    """(width,) float64: ReLU(β) of each removed channel, 0 for the kept ones."""
    (batchnorm,) = group.batchnorms
    constants = torch.relu(network.get_submodule(batchnorm).bias.double()).clone()
    constants[torch.from_numpy(kept).to(constants.device)] = 0
    return constants


def _shift_running_mean(state: dict[str, Tensor], conv: Conv, constants: Tensor) -> None:
    """BN subtracts its mean: lowering it by what the constants added gives the same output without them."""
    added = state[f"{conv.name}.weight"].double().sum((2, 3)) @ constants
    mean = state[f"{conv.batchnorm}.running_mean"]
    state[f"{conv.batchnorm}.running_mean"] = (mean.double() - added).to(mean.dtype)
