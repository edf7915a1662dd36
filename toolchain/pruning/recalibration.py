"""BN statistics measured anew on real images: after pruning the old ones describe another network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.models.model_info import Preprocessing
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.progress import progress_bar

BATCH_SIZE = 256


@torch.no_grad()
def recalibrate(network: GraphNetwork, images: Split, preprocessing: Preprocessing, *, device: str) -> None:
    """Replace every BN's running mean and variance by the averages over `images`, in place.

    Weights, γ and β stay, and so does every training flag. The images are shuffled first (a folder's come
    class by class, and a batch of one class has another variance than the mixture).
    """
    images = images.take(np.random.default_rng(0).permutation(len(images)))
    place(network, device)
    with _measuring(network), progress_bar("measuring BN statistics", total=len(images)) as advance:
        for batch, _ in plain_batches(images, preprocessing, batch_size=BATCH_SIZE, device=device):
            if len(batch) > 1:  # one image has no variance at 1×1 pixels
                network(batch)
            advance(len(batch))


@contextlib.contextmanager
def _measuring(network: GraphNetwork) -> Iterator[None]:
    """Training mode with a cumulative average in every BN; everything but the statistics is put back."""
    flags = [(module, module.training) for module in network.modules()]
    batchnorms = network.batchnorms()
    momenta = [bn.momentum for bn in batchnorms]
    for bn in batchnorms:
        bn.reset_running_stats()
        bn.momentum = None  # torch's cumulative average
    network.train()
    try:
        yield
    finally:
        for module, was_training in flags:
            module.training = was_training
        for bn, momentum in zip(batchnorms, momenta, strict=True):
            bn.momentum = momentum
