"""A convolution that is one matrix product on the CPU where oneDNN, which torch uses, is slow or wrong.

The last stages of a network on small images have many weights and few pixels. There the products are several
times as fast (`benchmarks/convolution_layer.py`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

Pair = tuple[int, int]
Window = tuple[Pair, Pair, Pair]
"""Stride, padding and dilation."""
WEIGHTS_PER_PIXEL = 2**17
"""The product is faster for at least so many weights per pixel of an output.

oneDNN reads the weights once per image; if they exceed the cache, it waits for the memory.
"""
VERY_FEW_PIXELS = 4
"""A 1×1 convolution of any width is faster as a product for outputs of at most so many pixels."""
FEW_PIXELS = 16
"""The weight gradient is faster as a product for outputs of at most so many pixels."""
FEW_PIXELS_1X1 = 64
"""The same for 1×1 kernels, whose inputs needn't be copied once per tap, and for the input gradient of
strided ones.
"""
CHANNEL_BLOCK = 16
"""Channels per block of oneDNN with AVX-512; 8 with AVX2."""


class Convolution(nn.Conv2d):
    """`torch.nn.Conv2d` with zero padding; same parameters, output and gradients."""

    padding: Pair

    def forward(self, input: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H', W')."""
        if not self._takes(input):
            return super().forward(input)
        operands: list[Tensor | None] = [input, self.weight, self.bias]
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            operands = [tensor if tensor is None else tensor.to(dtype) for tensor in operands]
        window = (self.stride, self.padding, self.dilation)
        return _Convolution.apply(*operands, window)  # type: ignore[no-any-return]

    def _takes(self, images: Tensor) -> bool:
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or images.device.type != "cpu":
            return False
        batch = images.ndim == 4 and images.shape[1] == self.in_channels  # else torch raises the error
        return batch and self.groups == 1


class _Convolution(Function):
    """A dense convolution; three functions choose how its output and its gradients are computed."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.window = window
        size = _output_size(images, weight, window)
        if output_by_product(weight, math.prod(size)):
            return output(images, weight, bias, size, window)
        return functional.conv2d(images, weight, bias, *window)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding, dilation = window = ctx.window
        pixels = gradient.shape[2] * gradient.shape[3]
        wanted = list(ctx.needs_input_grad[:3])
        found: list[Tensor | None] = [None, None, None]
        if wanted[0] and input_gradient_by_product(weight, stride, pixels):
            wanted[0], found[0] = False, input_gradient(gradient, images.shape, weight, window)
        if wanted[1] and weight_gradient_by_product(weight, stride, pixels):
            wanted[1], found[1] = False, weight_gradient(gradient, images, weight.shape, window)
        if any(wanted):
            rest = torch.ops.aten.convolution_backward(
                gradient, images, weight, [len(weight)], stride, padding, dilation, False, (0, 0), 1, wanted
            )
            found = [mine if mine is not None else theirs for mine, theirs in zip(found, rest, strict=True)]
        return *found, None


def output_by_product(weight: Tensor, pixels: int) -> bool:
    """Whether a product computes the output of an (out, in, kh, kw) weight; `pixels`: of an output."""
    enough = weight.numel() >= WEIGHTS_PER_PIXEL * pixels
    return pixels > 0 and (enough or (_one_tap(weight) and pixels <= VERY_FEW_PIXELS))


def input_gradient_by_product(weight: Tensor, stride: Pair, pixels: int) -> bool:
    """The same for the gradient of the input, for which strided 1×1 convolutions are slower in oneDNN."""
    strided = _one_tap(weight) and max(stride) > 1
    return output_by_product(weight, pixels) or (strided and pixels <= FEW_PIXELS_1X1)


def weight_gradient_by_product(weight: Tensor, stride: Pair, pixels: int) -> bool:
    """The same for the gradient of the weight, where a product is faster, and where oneDNN's result is wrong.

    For a strided 1×1 convolution in channels-last layout with fewer input channels than a block, oneDNN
    writes beyond its workspace (oneDNN issue 6035). This damages the heap, or with several threads gives a
    wrong gradient.
    """
    if not _one_tap(weight):
        return pixels <= FEW_PIXELS
    return pixels <= FEW_PIXELS_1X1 or (max(stride) > 1 and weight.shape[1] < CHANNEL_BLOCK)


def output(images: Tensor, weight: Tensor, bias: Tensor | None, size: Pair, window: Window) -> Tensor:
    """The (N, out, H', W') output of a dense convolution, `size` (H', W'), as one matrix product."""
    columns, matrix = _columns(images, weight.shape, size, window), _matrix(weight).t()
    # Not a view of the product: autograd forbids the next layer to change a view in place.
    found = torch.empty(
        (len(images), len(weight), *size), dtype=images.dtype, memory_format=torch.channels_last
    )
    rows = found.permute(0, 2, 3, 1).view(-1, len(weight))
    if bias is None:
        torch.mm(columns, matrix, out=rows)
    else:
        torch.addmm(bias, columns, matrix, out=rows)
    return found


def input_gradient(gradient: Tensor, shape: torch.Size, weight: Tensor, window: Window) -> Tensor:
    """The gradient of the (N, in, H, W) input: one matrix product, whose columns are added up per pixel."""
    (down, across), (above, left), dilation = window
    count, inputs, height, width = shape
    rows, columns = gradient.shape[2:]
    kernel = weight.shape[2:]
    taps = (_rows(gradient) @ _matrix(weight)).view(count, rows, columns, *kernel, inputs)
    exact = torch.promote_types(gradient.dtype, torch.float32)  # as oneDNN adds up
    padded = gradient.new_zeros(count, height + 2 * above, width + 2 * left, inputs, dtype=exact)
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            top, start = y * dilation[0], x * dilation[1]
            read = padded[:, top : top + down * rows : down, start : start + across * columns : across]
            read += taps[:, :, :, y, x]
    return padded[:, above : above + height, left : left + width].permute(0, 3, 1, 2).to(gradient.dtype)


def weight_gradient(gradient: Tensor, images: Tensor, shape: torch.Size, window: Window) -> Tensor:
    """The gradient of the (out, in, kh, kw) weight as one matrix product, in channels-last layout."""
    out, inputs, *kernel = shape
    columns = _columns(images, shape, gradient.shape[2:], window)
    return (_rows(gradient).t() @ columns).view(out, *kernel, inputs).permute(0, 3, 1, 2)


def _one_tap(weight: Tensor) -> bool:
    return weight.shape[2:] == (1, 1)


def _rows(images: Tensor) -> Tensor:
    """(N, C, H, W) → (N·H·W, C)."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _matrix(weight: Tensor) -> Tensor:
    """(out, in, kh, kw) → (out, kh·kw·in)."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _columns(images: Tensor, shape: torch.Size, size: tuple[int, ...], window: Window) -> Tensor:
    """The (N·H'·W', kh·kw·in) values that the output pixels read (im2col), in channels-last order."""
    stride, padding, dilation = window
    _, inputs, *kernel = shape
    pixels = functional.pad(
        images.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])
    )
    each, row, column, channel = pixels.stride()
    read = pixels.as_strided(
        (len(images), *size, *kernel, inputs),
        (each, stride[0] * row, stride[1] * column, dilation[0] * row, dilation[1] * column, channel),
        pixels.storage_offset(),
    )
    return read.reshape(-1, kernel[0] * kernel[1] * inputs)


def _output_size(images: Tensor, weight: Tensor, window: Window) -> Pair:
    height, width = (
        max(images.shape[axis] + 2 * padding - dilation * (weight.shape[axis] - 1) - 1, -stride) // stride + 1
        for axis, (stride, padding, dilation) in enumerate(zip(*window, strict=True), start=2)
    )
    return height, width
