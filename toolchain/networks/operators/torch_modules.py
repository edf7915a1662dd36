"""Torch modules for operators that torch.nn lacks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of (N, C) or, pixel by pixel, of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ChannelConv1d(nn.Conv1d):
    """(N, C) → (N, C): a convolution along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, None])[:, 0]


class PixelLinear(nn.Linear):
    """(N, C, H, W) → (N, O, H, W): a linear layer (O, C) on each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class StochasticDepth(nn.Module):
    """During training, sets the branch to 0 for a `share` of the images and scales the others to keep the
    mean (Huang et al., arXiv 1603.09382).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.dropout(x, self.share, training=False)  # so that torch.export records an operator
        kept = x.new_empty((len(x), *[1] * (x.dim() - 1))).bernoulli_(1 - self.share)
        return x * kept / (1 - self.share) if self.share < 1 else x * kept
