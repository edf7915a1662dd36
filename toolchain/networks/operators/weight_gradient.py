"""A convolution whose weight gradient on the CPU is one matrix product where its output has few pixels.

torch computes this gradient with oneDNN, whose kernels are slow for few pixels, as in the last stages of a
network on small images. There the product is several times as fast (`benchmarks/weight_gradient.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

Pair = tuple[int, int]
FEW_PIXELS = 16
"""The product is faster for outputs of at most so many pixels per image."""
FEW_PIXELS_1X1 = 64
"""The same for 1×1 kernels, whose inputs needn't be copied once per tap."""
CHANNEL_BLOCK = 16
"""Channels per block of oneDNN with AVX-512; 8 with AVX2."""


class Convolution(nn.Conv2d):
    """`torch.nn.Conv2d` with zero padding; same parameters, output and gradients."""

    padding: Pair

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H', W')."""
        if not self._own_gradient(input):
            return super().forward(input)
        operands: list[Tensor | None] = [input, self.weight, self.bias]
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            operands = [tensor if tensor is None else tensor.to(dtype) for tensor in operands]
        return _Convolution.apply(*operands, self.stride, self.padding, self.dilation)  # type: ignore[no-any-return]

    def _own_gradient(self, images: Tensor) -> bool:
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        return images.device.type == "cpu" and self.groups == 1 and trained and not traced


class _Convolution(Function):
    """A dense convolution; `by_product` chooses how the gradient of its weights is computed."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.window = (stride, padding, dilation)
        return functional.conv2d(images, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.window
        wanted = list(ctx.needs_input_grad[:3])
        product = wanted[1] and by_product(weight, stride, gradient.shape[2] * gradient.shape[3])
        if product:
            wanted[1] = False
        found = torch.ops.aten.convolution_backward(
            gradient, images, weight, [len(weight)], stride, padding, dilation, False, (0, 0), 1, wanted
        )
        of_weight = weight_gradient(gradient, images, weight.shape, *ctx.window) if product else found[1]
        return found[0], of_weight, found[2], None, None, None


def by_product(weight: Tensor, stride: Pair, pixels: int) -> bool:
    """Whether a matrix product gives the gradient of an (out, in, kh, kw) weight; `pixels`: of an output.

    It does where it is faster, and where oneDNN's result is wrong: for a strided 1×1 convolution in
    channels-last layout with fewer input channels than a block, oneDNN writes beyond its workspace (oneDNN
    issue 6035). This damages the heap, or with several threads gives a wrong gradient.
    """
    _, inputs, *kernel = weight.shape
    if kernel != [1, 1]:
        return pixels <= FEW_PIXELS
    return pixels <= FEW_PIXELS_1X1 or (max(stride) > 1 and inputs < CHANNEL_BLOCK)


def weight_gradient(
    gradient: Tensor, images: Tensor, shape: torch.Size, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient of a dense convolution's (out, in, kh, kw) weight as one matrix product.

    `gradient` is that of the (N, out, H', W') output. The columns are the (N·H'·W', kh·kw·in) values that the
    output pixels read (im2col), in channels-last order, so that the result is a channels-last weight.
    """
    out, inputs, *kernel = shape
    count, _, *size = gradient.shape
    pixels = functional.pad(
        images.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])
    )
    each, row, column, channel = pixels.stride()
    read = pixels.as_strided(
        (count, *size, *kernel, inputs),
        (each, stride[0] * row, stride[1] * column, dilation[0] * row, dilation[1] * column, channel),
        pixels.storage_offset(),
    )
    columns = read.reshape(-1, kernel[0] * kernel[1] * inputs)
    found = gradient.permute(0, 2, 3, 1).reshape(-1, out).t() @ columns
    return found.view(out, *kernel, inputs).permute(0, 3, 1, 2)
