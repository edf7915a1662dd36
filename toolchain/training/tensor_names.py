"""Tensors by name, as stored in a state."""

from __future__ import annotations

from torch import Tensor

Tensors = dict[str, Tensor]


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
