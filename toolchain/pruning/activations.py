"""Statistics of the inputs of layers that read prunable channels, measured on real images.

They give the second moments for optimal compensation, and the sensitivity of the loss to each output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimdeploy.toolchain.data.feed import Feed
from slimdeploy.toolchain.networks.channel_groups import source_of
from slimdeploy.toolchain.networks.gradients import with_gradients
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork


@dataclass(frozen=True)
class InputMoments:
    """Statistics of one layer's C inputs and O outputs, over images and positions. After a flatten, the
    inputs are the channels before it.

    `mean` (C,) and `covariance` (C, C) are those of the inputs. `sensitivity` (O,) is the squared gradient of
    the loss with respect to an output, summed over positions, mean over images: the diagonal of the Fisher
    information, used as the weight of output errors. `taylor` (C,) is the mean over images of (Σ over
    positions of input × gradient)².
    """

    mean: Tensor
    covariance: Tensor
    sensitivity: Tensor
    taylor: Tensor

    def of_inputs(self, channels: Tensor) -> InputMoments:
        """The statistics of the given inputs only, in the given order."""
        covariance = self.covariance[channels][:, channels]
        return InputMoments(self.mean[channels], covariance, self.sensitivity, self.taylor[channels])


Moments = dict[str, InputMoments]
"""By layer."""


@with_gradients
def measure_inputs(network: GraphNetwork, layers: Iterable[str], feed: Feed, *, device: str) -> Moments:
    """Statistics of the inputs of the named layers over the images of `feed`, in eval mode. The state of the
    network is restored afterwards.
    """
    graph = network.graph
    meters = {name: _Meter(source_of(graph, graph.by_name[name])[1]) for name in layers}
    was_training, flags = network.training, [p.requires_grad for p in network.parameters()]
    place(network, device).eval().requires_grad_(False)
    seen = 0
    try:
        with contextlib.ExitStack() as stack:
            for name, meter in meters.items():
                stack.enter_context(_watching(network.get_submodule(name), meter))
            for batch, labels in feed:
                logits = network(batch.detach().requires_grad_())
                F.cross_entropy(logits, labels, reduction="sum").backward()
                seen += len(labels)
    finally:
        network.train(was_training)
        for parameter, flag in zip(network.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    return {name: meter.moments(seen) for name, meter in meters.items()}


class _Meter:
    """Sums over all inputs of one layer."""

    def __init__(self, taps: int) -> None:
        self._taps = taps
        """Number of adjacent values in a flattened input that belong to one channel."""
        self.count = 0
        self.offset: Tensor | None = None
        self.total = self.products = self.squared_gradients = self.taylor = torch.zeros(())

    def see_input(self, x: Tensor) -> None:
        rows = _rows(self._unflattened(x))
        if self.offset is None:
            # Subtracting it keeps float32 products accurate enough for a covariance: that of a constant
            # channel is 0.
            self.offset = rows.mean(0)
        rows = rows - self.offset
        self.count += len(rows)
        self.total = self.total + rows.sum(0).double()
        self.products = self.products + (rows.T @ rows).double()

    def see_input_gradient(self, x: Tensor, gradient: Tensor) -> None:
        products = self._unflattened(x * gradient)
        products = products.flatten(2).sum(2) if products.dim() > 2 else products
        self.taylor = self.taylor + products.square().sum(0).double()

    def _unflattened(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self._taps)) if self._taps > 1 else x

    def see_output_gradient(self, gradient: Tensor) -> None:
        self.squared_gradients = self.squared_gradients + _rows(gradient).square().sum(0).double()

    def moments(self, images: int) -> InputMoments:
        assert self.offset is not None
        around = self.total / self.count
        covariance = self.products / self.count - torch.outer(around, around)
        mean = around + self.offset.double()
        sensitivity, taylor = self.squared_gradients / images, self.taylor / images
        return InputMoments(mean.cpu(), covariance.cpu(), sensitivity.cpu(), taylor.cpu())


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) or (N, C) as (N·H·W, C)."""
    return x.detach().movedim(1, -1).flatten(0, -2)


@contextlib.contextmanager
def _watching(layer: nn.Module, meter: _Meter) -> Iterator[None]:
    # The layer reads its own copy of the input, so that the gradient is that through this layer only.
    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0].view_as(inputs[0])
        meter.see_input(x)
        seen = x.detach()
        x.register_hook(lambda gradient: meter.see_input_gradient(seen, gradient))
        return (x,)

    def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(meter.see_output_gradient)

    handles = [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
