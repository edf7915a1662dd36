"""Comparison of an exported model with its checkpoint, on real images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import open_session

BATCH_SIZE = 64


@dataclass(frozen=True)
class Parity:
    """Comparison of an export with torch."""

    max_abs_error: float
    """Largest difference of a logit."""
    top1_agreement: float
    """Share of images with the same top-1 class."""
    images: int
    largest_logit: float
    """Largest absolute value of torch's logits."""


def normalised(images: Split, preprocessing: Preprocessing) -> Iterator[np.ndarray]:
    """Batches of `images`, (N, C, H, W) float32."""
    for start in range(0, len(images), BATCH_SIZE):
        yield normalise(images.stored[start : start + BATCH_SIZE], preprocessing)


def compare(network: GraphNetwork, model: Path, batches: Iterable[np.ndarray]) -> Parity:
    """Run `network` in torch and `model` in its runtime on the same images (N, C, H, W) float32, on
    the CPU.
    """
    network = copy.deepcopy(network).cpu().eval()
    errors, agreements, logits = [], [], []
    with open_session(model) as session, torch.no_grad():
        for batch in batches:
            expected, found = network(torch.from_numpy(batch)).numpy(), session.run(batch)
            errors.append(np.abs(expected - found).max())
            agreements.append(expected.argmax(1) == found.argmax(1))
            logits.append(np.abs(expected).max())
    # A NaN on either side makes the maximum NaN, which exceeds every tolerance.
    same = np.concatenate(agreements)
    return Parity(float(np.max(errors)), float(same.mean()), len(same), float(np.max(logits)))
