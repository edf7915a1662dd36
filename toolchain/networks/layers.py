"""The layers of a network, enumerated from its spec alone: names, widths and sizes. No torch here.

Costs, the ONNX export, the pruning groups and the latency tables all read this one list.
"""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.spec import STEMS, NetworkSpec

MINIMUM_SIZE = 8
"""Smallest image side accepted, in pixels."""


@dataclass(frozen=True)
class Conv:
    """A convolution and the BN behind it. Sizes are the square image's side in pixels."""

    name: str
    batchnorm: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    in_size: int
    out_size: int
    affine: bool = True
    relu: bool = True

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def weights(self) -> int:
        return self.out_channels * self.in_channels * self.kernel**2

    @property
    def params(self) -> int:
        """Weights, and γ and β of the BN where it has them."""
        return self.weights + (2 * self.out_channels if self.affine else 0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.weights * self.out_size**2


@dataclass(frozen=True)
class Block:
    """A residual block: its main path (empty when removed) and its projection shortcut, if any."""

    name: str
    convs: tuple[Conv, ...]
    shortcut: Conv | None
    out_channels: int
    out_size: int


@dataclass(frozen=True)
class Layers:
    """A whole network in order of execution."""

    stem: Conv
    pool_size: int | None
    """Side after the stem's max-pool, None where the stem has none."""
    blocks: tuple[Block, ...]
    classifier_in: int
    classes: int

    def convs(self) -> list[Conv]:
        """Every convolution in order: stem, then each block's main path and its shortcut."""
        found = [self.stem]
        for block in self.blocks:
            found += [*block.convs, *([block.shortcut] if block.shortcut else [])]
        return found


def enumerate_layers(spec: NetworkSpec, size: int) -> Layers:
    """List the layers of `spec` for square images with a side of `size` pixels.

    Raises SlimdeployError for images too small to pass through.
    """
    if size < MINIMUM_SIZE:
        raise SlimdeployError(f"images of {size}×{size} are too small: {MINIMUM_SIZE} is the least")
    arch, stem, channels = spec.architecture, STEMS[spec.stem], spec.channels
    first = Conv(
        "conv1", "bn1", 3, channels.stem, stem.kernel, stem.stride, size, _strided(size, stem.stride)
    )
    pool_size = _strided(first.out_size, 2) if stem.max_pool else None
    side = pool_size or first.out_size
    width, blocks = channels.stem, []
    for index, (name, widths) in enumerate(channels.named(arch)):
        stride = 2 if name.endswith(".0") and not name.startswith("layer1.") else 1
        after = _strided(side, stride)
        shortcut = None
        if arch.has_projection(name):
            names = f"{name}.downsample.0", f"{name}.downsample.1"
            affine = spec.shortcut_affine
            shortcut = Conv(*names, width, widths[-1], 1, stride, side, after, affine=affine, relu=False)
        convs = () if channels.is_removed(index) else _main_path(name, width, widths, stride, side, after)
        blocks.append(Block(name, convs, shortcut, widths[-1], after))
        width, side = widths[-1], after
    return Layers(first, pool_size, tuple(blocks), width, spec.classes)


def _main_path(
    name: str, width: int, widths: tuple[int, ...], stride: int, side: int, after: int
) -> tuple[Conv, ...]:
    # Where the stride sits: in the 3×3 of a bottleneck (torchvision, "ResNet v1.5"), in the first 3×3 of a
    # basic block.
    kernels = (1, 3, 1) if len(widths) == 3 else (3, 3)
    strided = kernels.index(3)
    convs, size_in = [], side
    for i, (kernel, out) in enumerate(zip(kernels, widths, strict=True)):
        size_out = after if i >= strided else side
        names = f"{name}.conv{i + 1}", f"{name}.bn{i + 1}"
        own_stride = stride if i == strided else 1
        relu = i < len(widths) - 1  # the last one's comes after the residual sum
        convs.append(Conv(*names, width, out, kernel, own_stride, size_in, size_out, relu=relu))
        width, size_in = out, size_out
    return tuple(convs)


def _strided(size: int, stride: int) -> int:
    return (size - 1) // stride + 1
