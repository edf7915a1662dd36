"""Gradients of every kind of convolution that pruning can leave, as training computes them, against float64.

    python layer_sweep.py

prints a line for each layer that is off, on one thread or on two. Run it as a process of its own: a library
that writes past its memory ends it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.operators.convolution_layer import Convolution

SIDE = 18
"""Pixels: enough for the outputs of strided layers to have more than convolution_layer.FEW_PIXELS_1X1."""
WIDEST = 17
"""One more than the widest block of channels that a CPU computes at once."""


def layers() -> Iterator[nn.Conv2d]:
    """Dense, grouped and depthwise, with and without stride, of 1 to WIDEST channels."""
    for width in range(1, WIDEST + 1):
        other = 8 if width % 2 else 5
        for kernel in (1, 3):
            for stride in (1, 2):
                yield _conv(width, other, kernel, stride)
                yield _conv(width, width, kernel, stride, groups=width)
                if width % 3 == 0:
                    yield _conv(width, 2 * width, kernel, stride, groups=width // 3)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    return Convolution(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def off_by(layer: nn.Conv2d, layout: torch.memory_format) -> float:
    """The largest relative error of output and both gradients, for images in `layout`."""
    images = torch.randn(3, layer.in_channels, SIDE, SIDE)
    exact = _passes(nn.Sequential(layer).double(), images.double())
    placed = place(nn.Sequential(layer).float(), "cpu")
    found = _passes(placed, images.to(memory_format=layout))
    return max(
        float((a.double() - b).norm() / b.norm().clamp(min=1e-6)) for a, b in zip(found, exact, strict=True)
    )


def _passes(network: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weight: Tensor = network[0].weight  # type: ignore[assignment]
    weight.grad, images = None, images.requires_grad_()
    output = network(images)
    (output**2).sum().backward()
    assert weight.grad is not None
    assert images.grad is not None
    return output.detach(), weight.grad.detach().clone(), images.grad


def main() -> None:
    torch.manual_seed(0)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for layer, layout in itertools.product(layers(), (torch.channels_last, torch.contiguous_format)):
            if not off_by(layer, layout) < 1e-4:
                print(f"{layer}, images in {layout}, {threads} threads", flush=True)
    print("all layers tried")


if __name__ == "__main__":
    main()
