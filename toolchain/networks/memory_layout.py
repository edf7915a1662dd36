"""The memory layout of a network in training: channels-last, which is faster."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def place(network: Network, device: str) -> Network:
    """Move `network` to `device` in channels-last layout; returns it."""
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
