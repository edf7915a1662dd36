"""The memory layout of a network in training: channels-last, which is faster, except for layers whose weight
gradient is computed incorrectly on the CPU in that layout.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

CHANNEL_BLOCK = 16
"""Channels per block of oneDNN with AVX-512; 8 with AVX2."""

Network = TypeVar("Network", bound=nn.Module)


def place(network: Network, device: str) -> Network:
    """Move `network` to `device` in channels-last layout; returns it."""
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cpu":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and needs_contiguous(layer):
                _keep_contiguous(layer)
    return network


def needs_contiguous(layer: nn.Conv2d) -> bool:
    """Whether oneDNN computes a wrong weight gradient for this layer in channels-last layout.

    A strided 1×1 convolution with fewer input channels than a block then writes beyond its workspace (oneDNN
    issue 6035): the heap is damaged, or with several threads the gradient is wrong.
    """
    strided = max(layer.stride) > 1
    return layer.kernel_size == (1, 1) and strided and layer.groups == 1 and layer.in_channels < CHANNEL_BLOCK


def _keep_contiguous(layer: nn.Conv2d) -> None:
    layer.weight.data = _contiguous(layer.weight.data)
    if _contiguous_input not in layer._forward_pre_hooks.values():  # the network may have been placed before
        layer.register_forward_pre_hook(_contiguous_input)


def _contiguous_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    (x,) = inputs
    return (_contiguous(x),) if x.device.type == "cpu" else None


def _contiguous(tensor: Tensor) -> Tensor:
    # Always a copy: .contiguous() returns a tensor of 1×1 pixels unchanged, and its strides still mean
    # channels-last.
    return tensor.clone(memory_format=torch.contiguous_format)


def format_of(tensor: Tensor) -> torch.memory_format:
    """The memory layout of a weight."""
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
