"""Modules for tests of the import."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A classifier with `middle` between its convolution and its pooling."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.conv, self.middle, self.fc = nn.Conv2d(3, 8, 3, padding=1), middle, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.conv(x)).mean((2, 3)))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Borrowing(nn.Module):
    """A layer that is called with a tensor that isn't the layer's own."""

    def __init__(self, layer: nn.Module, call: str) -> None:
        super().__init__()
        self.layer, self.call, self.extra = layer, call, nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return eval(self.call, {"x": x, "layer": self.layer, "extra": self.extra, "F": nn.functional})


class RowGate(nn.Module):
    """ECA-Net's gate as timm writes it, of a vector or of an image of one pixel."""

    def __init__(self, taps: int = 3, filters: int = 1, *, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim
        self.conv = nn.Conv1d(1, filters, taps, padding=taps // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3), self.keepdim).view(len(x), 1, -1)).sigmoid()
        return x * gate[:, :1, : x.shape[1]].reshape(len(x), -1, 1, 1).expand_as(x)


class Blur(nn.Module):
    """A fixed filter: one kernel, expanded as in timm, or one for each channel, as in antialiased-cnns."""

    def __init__(self, *, each: bool = False, bias: bool = False) -> None:
        super().__init__()
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.each, self.bias = each, torch.zeros(8) if bias else None
        self.register_buffer(
            "filt", kernel.repeat(8, 1, 1, 1) if each else kernel[None, None], persistent=each
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.filt if self.each else self.filt.expand(8, -1, -1, -1)
        return nn.functional.conv2d(x, weight, self.bias, stride=2, padding=(1, 0), groups=8)
