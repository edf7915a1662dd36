"""Accuracy and loss of a network in torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.feed import TEST_BATCH_SIZE, Feed, LoaderFeed, SplitFeed
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.progress import progress_bar
from slimdeploy.toolchain.training.distributed import ALONE, Ranks
from slimdeploy.toolchain.training.precision import autocast


@dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy in 0…1, mean cross-entropy, number of images."""

    accuracy: float
    loss: float
    images: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def evaluate_network(
    network: GraphNetwork,
    images: Split | LoaderFeed,
    preprocessing: Preprocessing,
    *,
    device: str,
    precision: str = "fp32",
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Evaluate in eval mode; the training flag is restored afterwards.

    With several `ranks` each evaluates a part of a split; all return the same result.
    """
    feed: Feed = images if isinstance(images, LoaderFeed) else _share(images, preprocessing, device, ranks)
    return evaluate_feed(network, feed, device=device, precision=precision, ranks=ranks)


def _share(split: Split, preprocessing: Preprocessing, device: str, ranks: Ranks) -> SplitFeed:
    return SplitFeed(ranks.share_of(split), preprocessing, device, TEST_BATCH_SIZE)


@torch.no_grad()
def evaluate_feed(
    network: GraphNetwork, feed: Feed, *, device: str, precision: str = "fp32", ranks: Ranks = ALONE
) -> Evaluation:
    """Evaluate on the images of `feed`; with several `ranks` each has its own feed."""
    was_training = network.training
    place(network, device).eval()
    correct, count = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with progress_bar("evaluating", total=feed.images) as advance:
        for images, labels in feed:
            with autocast(precision, device):
                logits = network(images)
            loss += F.cross_entropy(logits.float(), labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            count += len(labels)
            advance(len(labels))
    network.train(was_training)
    for total in (correct, loss, count):
        ranks.sum(total)
    images_seen = int(count.item())
    return Evaluation(correct.item() / images_seen, loss.item() / images_seen, images_seen)
