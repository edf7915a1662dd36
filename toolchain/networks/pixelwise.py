"""Torch modules that work on the channels of each pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of (N, C) or, pixel by pixel, of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PixelLinear(nn.Linear):
    """(N, C, H, W) → (N, O, H, W): a linear layer (O, C) on each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)
