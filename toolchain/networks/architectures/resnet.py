"""ResNets of any width (He et al., arXiv 1512.03385) with torchvision's module names and strides, and their
channel configuration in the notation of network slimming.

The flat form of a bottleneck network is `[stem, c1, c2, c3, c1, c2, c3, …]`, 49 numbers for ResNet-50; of a
basic-block network `[stem, c1, c2, …]`. A block whose inner widths are all 0 is removed: only its shortcut
remains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.networks.architectures.registry import ARCHITECTURES
from slimdeploy.toolchain.networks.graph import INPUT, Graph, Node


@dataclass(frozen=True)
class Stem:
    """The first convolution (stem) and whether a 3×3 stride-2 max-pool follows it."""

    kernel: int
    stride: int
    max_pool: bool
    shortcut_affine: bool
    """Default of `affine` for the BN of projection shortcuts: with the CIFAR stems it has no γ and β, as in
    the reference implementation.
    """


STEMS: dict[str, Stem] = {
    "cifar-pool": Stem(kernel=3, stride=1, max_pool=True, shortcut_affine=False),
    "cifar": Stem(kernel=3, stride=1, max_pool=False, shortcut_affine=False),
    "imagenet": Stem(kernel=7, stride=2, max_pool=True, shortcut_affine=True),
}


@dataclass(frozen=True)
class ChannelConfig:
    """Output channels of the stem and of every convolution of every block, in order."""

    stem: int
    blocks: tuple[tuple[int, ...], ...]

    def flat(self) -> tuple[int, ...]:
        """All numbers in order, the stem first."""
        return (self.stem, *(width for block in self.blocks for width in block))

    @classmethod
    def from_flat(cls, arch: ResNet, numbers: Sequence[int]) -> ChannelConfig:
        """Read the flat form; raises SlimdeployError if `arch` needs another number of values."""
        per_block = 3 if arch.bottleneck else 2
        expected = 1 + per_block * sum(arch.depths)
        if len(numbers) != expected:
            raise SlimdeployError(f"{arch.name} needs {expected} channel numbers, not {len(numbers)}")
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            raise SlimdeployError("channel numbers must be whole numbers")
        inner = numbers[1:]
        blocks = tuple(tuple(inner[i : i + per_block]) for i in range(0, len(inner), per_block))
        return cls(numbers[0], blocks)

    def check(self, arch: ResNet) -> None:
        """Raise SlimdeployError for widths that do not make a network, naming the block, the value and the
        expected value.
        """
        names = arch.block_names()
        if len(self.blocks) != len(names):
            raise SlimdeployError(
                f"{arch.name} has {len(names)} blocks, the channel configuration {len(self.blocks)}"
            )
        if self.stem < 1:
            raise SlimdeployError(f"stem: {self.stem} channels, expected at least 1")
        width = self.stem
        for name, block in zip(names, self.blocks, strict=True):
            *inner, out = block
            if out < 1:
                raise SlimdeployError(f"{name}: {out} output channels, expected at least 1")
            removed = all(n == 0 for n in inner)
            if not removed and min(inner) < 1:
                raise SlimdeployError(
                    f"{name}: inner widths {inner}, expected at least 1 each (or 0 for all: block removed)"
                )
            if not arch.has_projection(name) and out != width:
                raise SlimdeployError(
                    f"{name}: {out} output channels, expected {width} (what its shortcut carries)"
                )
            width = out


@dataclass(frozen=True)
class ResNet:
    """A ResNet: its block type and the number of blocks in each of its four layers (He et al., 2015, table
    1).
    """

    name: str
    bottleneck: bool
    depths: tuple[int, int, int, int]
    stem_width: int = 64
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)

    def block_names(self) -> list[str]:
        """Blocks in order, by torchvision's names: `layer1.0`, `layer1.1`, …"""
        return [f"layer{i + 1}.{j}" for i, depth in enumerate(self.depths) for j in range(depth)]

    def has_projection(self, block: str) -> bool:
        """Whether the block's shortcut is a 1×1 convolution. This depends on the architecture, not on the
        widths.
        """
        layer, index = block.removeprefix("layer").split(".")
        return index == "0" and (self.bottleneck or layer != "1")

    def full_channels(self) -> ChannelConfig:
        """The channel configuration of the unpruned network."""
        blocks = []
        for width, depth in zip(self.widths, self.depths, strict=True):
            inner = (width, width, width * 4) if self.bottleneck else (width, width)
            blocks += [inner] * depth
        return ChannelConfig(self.stem_width, tuple(blocks))

    def graph(
        self,
        *,
        classes: int,
        stem: str = "cifar-pool",
        channels: ChannelConfig | Sequence[int] | None = None,
        shortcut_affine: bool | None = None,
        image_channels: int = 3,
    ) -> Graph:
        """The network at `channels` (default: unpruned). `shortcut_affine` overrides the stem's default.
        Raises SlimdeployError for contradicting values.
        """
        if stem not in STEMS:
            raise unknown("stem", stem, STEMS)
        if classes < 1:
            raise SlimdeployError(f"a network needs at least 1 class, not {classes}")
        if not isinstance(channels, ChannelConfig):
            channels = ChannelConfig.from_flat(self, channels) if channels else self.full_channels()
        channels.check(self)
        affine = STEMS[stem].shortcut_affine if shortcut_affine is None else shortcut_affine
        nodes = _Nodes(image_channels)
        x = nodes.stem(STEMS[stem], channels.stem)
        for name, widths in zip(self.block_names(), channels.blocks, strict=True):
            stride = 2 if name.endswith(".0") and not name.startswith("layer1.") else 1
            x = nodes.block(x, name, widths, stride, projection=self.has_projection(name), affine=affine)
        x = nodes.add("avgpool", "adaptive_avg_pool", x, size=[1, 1])
        x = nodes.add("flatten", "flatten", x, positions=1)
        nodes.add("fc", "linear", x, **{"in": channels.blocks[-1][-1], "out": classes, "bias": True})
        origin = {"arch": self.name, "stem": stem, "shortcut_affine": affine}
        return Graph(tuple(nodes.made), origin, image_channels)


class _Nodes:
    """Collects the nodes of a ResNet while it is built."""

    def __init__(self, image_channels: int) -> None:
        self.made: list[Node] = []
        self.width = image_channels
        """Channels of the residual sum; at the start, of the images."""

    def add(self, name: str, operator: str, *inputs: str, **attributes: object) -> str:
        self.made.append(Node(name, operator, inputs, attributes))
        return name

    def conv(
        self,
        x: str,
        conv: str,
        bn: str,
        widths: tuple[int, int],
        kernel: int,
        stride: int,
        affine: bool = True,
    ) -> str:
        first, second = widths
        sides = {
            "kernel": [kernel] * 2,
            "stride": [stride] * 2,
            "padding": [kernel // 2] * 2,
            "dilation": [1, 1],
        }
        x = self.add(conv, "conv", x, **{"in": first, "out": second}, **sides, groups=1, bias=False)
        return self.add(bn, "batchnorm", x, channels=second, eps=1e-5, momentum=0.1, affine=affine)

    def stem(self, stem: Stem, width: int) -> str:
        x = self.conv(INPUT, "conv1", "bn1", (self.width, width), stem.kernel, stem.stride)
        x = self.add("relu", "relu", x)
        if stem.max_pool:
            x = self.add("maxpool", "max_pool", x, kernel=[3, 3], stride=[2, 2], padding=[1, 1])
        self.width = width
        return x

    def block(
        self, x: str, name: str, widths: tuple[int, ...], stride: int, *, projection: bool, affine: bool
    ) -> str:
        main, shortcut, width, out = x, x, self.width, widths[-1]
        # The 3×3 convolution of a bottleneck has the stride (torchvision, "ResNet v1.5"), or the first 3×3
        # convolution of a basic block.
        kernels = (1, 3, 1) if len(widths) == 3 else (3, 3)
        removed = widths[0] == 0
        for i, (kernel, next_width) in enumerate(zip(kernels, widths, strict=True), start=1):
            if removed:
                break
            own = stride if i == kernels.index(3) + 1 else 1
            main = self.conv(main, f"{name}.conv{i}", f"{name}.bn{i}", (width, next_width), kernel, own)
            if i < len(widths):
                main = self.add(f"{name}.relu{i}", "relu", main)
            width = next_width
        if projection:
            names = f"{name}.downsample.0", f"{name}.downsample.1"
            shortcut = self.conv(x, *names, (self.width, out), 1, stride, affine)
        self.width = out
        if removed and not projection:
            return x  # a ReLU was applied already
        summed = shortcut if removed else self.add(f"{name}.add", "add", main, shortcut)
        return self.add(f"{name}.relu", "relu", summed)


def channel_config(graph: Graph) -> ChannelConfig | None:
    """The channel configuration of a graph that is a built-in ResNet, pruned or not; None for another."""
    arch = RESNETS.get(graph.arch)
    if arch is None:
        return None
    return ChannelConfig(graph.channels["conv1"], tuple(_block_widths(graph, arch)))


def _block_widths(graph: Graph, arch: ResNet) -> Iterator[tuple[int, ...]]:
    out = graph.channels["conv1"]
    for name in arch.block_names():
        count = 3 if arch.bottleneck else 2
        widths = [graph.channels.get(f"{name}.conv{i}", 0) for i in range(1, count + 1)]
        out = widths[-1] or graph.channels.get(f"{name}.downsample.0", out)
        yield (*widths[:-1], out)


RESNETS: dict[str, ResNet] = {}


def register(arch: ResNet) -> ResNet:
    """Register a ResNet under its name."""
    RESNETS[arch.name] = arch
    ARCHITECTURES[arch.name] = arch.graph
    return arch


register(ResNet("resnet18", bottleneck=False, depths=(2, 2, 2, 2)))
register(ResNet("resnet34", bottleneck=False, depths=(3, 4, 6, 3)))
register(ResNet("resnet50", bottleneck=True, depths=(3, 4, 6, 3)))
register(ResNet("resnet101", bottleneck=True, depths=(3, 4, 23, 3)))
register(ResNet("resnet152", bottleneck=True, depths=(3, 8, 36, 3)))
