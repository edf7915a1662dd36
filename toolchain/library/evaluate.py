"""`slimdeploy.evaluate`: a network and images in, accuracy and loss out."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn

from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.data.feed import Batch, everything, feed_of_tests
from slimdeploy.toolchain.library.from_module import as_checkpoint
from slimdeploy.toolchain.models.checkpoint import Checkpoint
from slimdeploy.toolchain.training.evaluation import Evaluation, evaluate_feed


def evaluate(
    network: Checkpoint | nn.Module,
    *,
    data: Dataset | Iterable[Batch],
    size: int | None = None,
    device: str | None = None,
) -> Evaluation:
    """Top-1 accuracy (0…1) and mean cross-entropy of `network` in eval mode; it stays as it is.

    Args:
        network: A checkpoint, or a module that takes images (N, 3, size, size) float32 and gives logits
            (N, classes).
        data: A dataset, of which the test images are taken, or batches of images (N, 3, size, size) float32,
            normalised, and labels (N,).
        size: Side of the images in pixels. Needed with a module that isn't slimdeploy's.
        device: Where to compute, such as `cuda`. Without it: where the network is.

    Raises:
        SlimdeployError: A module that can't be traced, or data that isn't in this form.
    """
    own = copy.deepcopy(as_checkpoint(network, size=size).network)
    device = device or str(next(own.parameters()).device)
    feed = feed_of_tests(data, device) if isinstance(data, Dataset) else everything(data, device)
    return evaluate_feed(own, feed, device=device)
