"""Accuracy and loss of a network in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.models.model_info import Preprocessing
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.progress import progress_bar
from slimdeploy.toolchain.training.distributed import ALONE, Ranks
from slimdeploy.toolchain.training.precision import autocast


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy in 0…1, mean cross-entropy, number of images."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def evaluate_network(
    network: GraphNetwork,
    split: Split,
    preprocessing: Preprocessing,
    *,
    device: str,
    precision: str = "fp32",
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Evaluate in eval mode; the network's training flag is put back afterwards.

    Of several `ranks` each looks at its share of `split`; all return the same.
    """
    was_training = network.training
    place(network, device).eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    share = ranks.share_of(split)
    with progress_bar("evaluating", total=len(share)) as advance:
        for images, labels in plain_batches(share, preprocessing, batch_size=250, device=device):
            with autocast(precision, device):
                logits = network(images)
            loss += F.cross_entropy(logits.float(), labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            advance(len(labels))
    network.train(was_training)
    ranks.sum(correct)
    ranks.sum(loss)
    return Evaluation(correct.item() / len(split), loss.item() / len(split), len(split))
