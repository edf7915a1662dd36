"""mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899): mix each image of a batch
with the previous one, and their labels in the same proportion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """`share` is the weight of the original images. Without `box` the other images are blended everywhere;
    with a `box` (rows, columns) they replace that part.
    """

    share: float
    box: tuple[slice, slice] | None = None

    def images(self, own: Tensor, others: Tensor) -> Tensor:
        """Mix two (N, C, H, W) tensors; returns a new tensor in the same layout."""
        if self.box is None:
            return own * self.share + others * (1 - self.share)
        mixed = own.clone()
        rows, columns = self.box
        mixed[:, :, rows, columns] = others[:, :, rows, columns]
        return mixed

    def labels(self, own: Tensor, others: Tensor, classes: int) -> Tensor:
        """(N, classes) float32: the probability of each class."""
        first, second = (F.one_hot(labels, classes).float() for labels in (own, others))
        return first * self.share + second * (1 - self.share)


def draw_mixes(mixup: float, cutmix: float, batches: int, side: int, *, seed: tuple[int, int]) -> list[Mix]:
    """The mixing of one batch of images of `side`×`side` pixels. The share is drawn from Beta(α, α), where α
    is `mixup` or `cutmix`; if both are above 0, one of them is chosen at random for each batch.
    """
    rng = np.random.default_rng(seed)
    mixes = []
    for _ in range(batches):
        cut = cutmix > 0 and (mixup <= 0 or rng.random() < 0.5)
        alpha = cutmix if cut else mixup
        share = float(rng.beta(alpha, alpha))
        mixes.append(_cut(share, side, rng) if cut else Mix(share))
    return mixes


def _cut(share: float, side: int, rng: np.random.Generator) -> Mix:
    """A square of 1 − `share` of the area around a random pixel, clipped at the border; the returned share
    takes the clipping into account.
    """
    half = side * (1 - share) ** 0.5 / 2
    spans = []
    for middle in rng.integers(0, side, 2).tolist():
        spans.append((max(0, round(middle - half)), min(side, round(middle + half))))
    (top, bottom), (left, right) = spans
    covered = (bottom - top) * (right - left) / side**2
    return Mix(1 - covered, (slice(top, bottom), slice(left, right)))
