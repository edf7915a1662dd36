"""The built-in importance criteria, listed in the table criterion.CRITERIA."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain.networks.channel_groups import ChannelGroup, source_of
from slimdeploy.toolchain.pruning.activations import InputMoments
from slimdeploy.toolchain.pruning.compensation import surgeon_scores
from slimdeploy.toolchain.pruning.criterion import Evidence, criterion

SURGEON_STEPS = 64
"""Maximum number of removal steps; each needs a rank update of the inverse covariance."""


@criterion(needs_gamma=True)
def gamma(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean |γ| of the BNs of the channel (network slimming, Liu et al., arXiv 1708.06519, section 3).

    A shortcut's BN without affine has γ = 1.
    """
    scales = []
    for name in group.batchnorms:
        node = evidence.network.graph.by_name[name]
        if node.attributes["affine"]:
            scales.append(_of_units(evidence.network.weight(name).detach().double().abs(), group, name))
        else:
            scales.append(torch.ones(group.width).double())
    return torch.stack([scale.cpu() for scale in scales]).mean(0).numpy()


@criterion()
def l1(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean |w| over the filters of all producers; the mean makes filters of different sizes comparable.

    Li et al., arXiv 1608.08710.
    """
    return _mean_norm(evidence, group, 1)


@criterion()
def l2(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Root mean square of the filters' weights over all producers."""
    return _mean_norm(evidence, group, 2)


@criterion()
def fpgm(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean distance to all filters of the group per weight, averaged over producers (He et al., arXiv
    1811.00250): a filter near the geometric median can be replaced by the others.
    """
    distances = []
    for name in group.producers:
        filters = _filters(evidence, name)[torch.from_numpy(group.positions[name].ravel())]
        found = torch.cdist(filters, filters).mean(1) / filters.shape[1] ** 0.5
        distances.append(found.unflatten(0, (group.width, -1)).mean(1))
    return torch.stack(distances).mean(0).cpu().numpy()


@criterion(needs_data=True)
def taylor(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Mean over images of (Σ activation·gradient)², summed over the layers that read the channel.

    Molchanov et al., arXiv 1906.10771, equation 8, with a gate on each channel.
    """
    scores = [moments.taylor for _, moments in _readers(evidence, group)]
    by_unit = [s.unflatten(0, (group.width, -1)).sum(1) for s in scores]
    return sum(by_unit, torch.zeros(group.width).double()).numpy()


@criterion(needs_data=True)
def surgeon(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Optimal Brain Surgeon on channels: the loss that remains after the best compensation. See
    `compensation.surgeon_scores`.
    """
    readers = _readers(evidence, group)
    if not readers:  # a slice leaves these channels out: the loss doesn't depend on them
        return np.zeros(group.width)
    channels = len(readers[0][1].mean)
    if any(len(moments.mean) != channels for _, moments in readers):  # read more than once
        readers = [reader for reader in readers if len(reader[1].mean) == channels]
    scores = surgeon_scores(readers, chunk=max(1, channels // SURGEON_STEPS))
    return scores.reshape(group.width, -1).sum(1)


@criterion()
def random(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
    """Uniform in 0…1, reproducible by seed and group: a baseline for other criteria."""
    return np.random.default_rng([evidence.seed, zlib.crc32(group.name.encode())]).random(group.width)


def _readers(evidence: Evidence, group: ChannelGroup) -> list[tuple[Tensor, InputMoments]]:
    """Weight (O, C, …) and input moments of every layer that reads the group, for the group's channels."""
    assert evidence.moments is not None
    graph, found = evidence.network.graph, []
    for name in group.consumers:
        value, taps = source_of(graph, graph.by_name[name])
        channels = torch.from_numpy(group.positions[value].ravel())
        weight = evidence.network.weight(name)
        weight = weight.unflatten(1, (-1, taps)) if taps > 1 else weight
        found.append((weight[:, channels.to(weight.device)], evidence.moments[name].of_inputs(channels)))
    return found


def _filters(evidence: Evidence, name: str) -> Tensor:
    return evidence.network.weight(name).detach().double().flatten(1).cpu()


def _of_units(values: Tensor, group: ChannelGroup, name: str) -> Tensor:
    """(width,) mean over the channels that each unit has in the value `name`."""
    positions = torch.from_numpy(group.positions[name]).to(values.device)
    return values[positions].mean(1)


def _mean_norm(evidence: Evidence, group: ChannelGroup, order: int) -> np.ndarray:
    norms = [
        _of_units(_filters(evidence, name).abs().pow(order).mean(1).pow(1 / order), group, name)
        for name in group.producers
    ]
    return torch.stack(norms).mean(0).cpu().numpy()
