"""Recalibration of BN statistics on real images: pruning changes the inputs of the BN layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.feed import Feed, SplitFeed
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.progress import progress_bar

BATCH_SIZE = 256


@torch.no_grad()
def recalibrate(network: GraphNetwork, feed: Feed, *, device: str) -> None:
    """Replace every BN's running mean and variance by those of the batches of `feed`, in place: averages in
    which each image has the same weight.

    Weights, γ, β and training flags are unchanged. A batch must contain a mixture of classes: the variance
    within one class differs (`shuffled` mixes them). Raises SlimdeployError if no batch has two images.
    """
    place(network, device)
    batchnorms = network.batchnorms()
    if not batchnorms:
        return
    counted = 0
    with _measuring(network), progress_bar("measuring BN statistics", total=feed.images) as advance:
        for batch, _ in feed:
            if len(batch) > 1:  # one image has no variance at 1×1 pixels
                counted += len(batch)
                for bn in batchnorms:
                    bn.momentum = len(batch) / counted  # the weight of this batch: the last may be smaller
                network(batch)
            advance(len(batch))
        if not counted:
            raise SlimdeployError("BN statistics need batches of at least two images")


def shuffled(images: Split, preprocessing: Preprocessing, *, device: str) -> SplitFeed:
    """`images` in a fixed random order: those of a folder are sorted by class."""
    order = np.random.default_rng(0).permutation(len(images))
    return SplitFeed(images.take(order), preprocessing, device, BATCH_SIZE)


@contextlib.contextmanager
def _measuring(network: GraphNetwork) -> Iterator[None]:
    """Reset the statistics of every BN and set it to training mode, the rest (dropout) to eval mode; restore
    everything but the statistics at the end.
    """
    flags = [(module, module.training) for module in network.modules()]
    batchnorms = network.batchnorms()
    momenta = [bn.momentum for bn in batchnorms]
    for bn in batchnorms:
        bn.reset_running_stats()
    network.eval()
    for bn in batchnorms:
        bn.train()
    try:
        yield
    finally:
        for module, was_training in flags:
            module.training = was_training
        for bn, momentum in zip(batchnorms, momenta, strict=True):
            bn.momentum = momentum
