"""Tensors by their names, as a state holds them."""

from __future__ import annotations

from torch import Tensor

Tensors = dict[str, Tensor]


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
