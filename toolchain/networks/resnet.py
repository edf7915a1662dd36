"""ResNets of any width (He et al., arXiv 1512.03385), with torchvision's module names and its placement of
strides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimdeploy.toolchain.networks.layers import Block, Conv, enumerate_layers
from slimdeploy.toolchain.networks.spec import STEMS, NetworkSpec


class ResNet(nn.Module):
    """Image classifier: (N, 3, H, W) float → (N, classes) logits. `spec` says what it is."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        layers = enumerate_layers(spec, 32)  # the widths don't depend on the size
        self.conv1, self.bn1 = _conv(layers.stem), _batchnorm(layers.stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if STEMS[spec.stem].max_pool else nn.Identity()
        for i in range(1, len(spec.architecture.depths) + 1):
            blocks = [ResidualBlock(block) for block in layers.blocks if block.name.startswith(f"layer{i}.")]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(layers.classifier_in, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for block in self.blocks():
            x = block(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def conv(self, name: str) -> nn.Conv2d:
        """The convolution of that name, as `enumerate_layers` lists them."""
        module = self.get_submodule(name)
        assert isinstance(module, nn.Conv2d), name
        return module

    def batchnorm(self, name: str) -> nn.BatchNorm2d:
        """The BN of that name."""
        module = self.get_submodule(name)
        assert isinstance(module, nn.BatchNorm2d), name
        return module

    def reader_weight(self, name: str) -> Tensor:
        """The weight (O, I, …) of the convolution or the classifier of that name."""
        module = self.get_submodule(name)
        assert isinstance(module, nn.Conv2d | nn.Linear), name
        return module.weight

    def place(self, device: str) -> ResNet:
        """Move to `device` in channels-last layout, which is faster for convolutions; returns itself."""
        return self.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def blocks(self) -> list[ResidualBlock]:
        """All residual blocks, in order."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]


class ResidualBlock(nn.Module):
    """A basic or bottleneck block; one that was removed holds nothing but its shortcut."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.depth = len(block.convs)
        for i, conv in enumerate(block.convs, start=1):
            self.add_module(f"conv{i}", _conv(conv))
            self.add_module(f"bn{i}", _batchnorm(conv))
        self.downsample = None
        if block.shortcut:
            self.downsample = nn.Sequential(_conv(block.shortcut), _batchnorm(block.shortcut))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.depth == 0:
            # x is a ReLU's output: a second one, in place, would take from backward what it needs.
            return x if shortcut is x else self.relu(shortcut)
        for i in range(1, self.depth):
            x = self.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        x = self.get_submodule(f"bn{self.depth}")(self.get_submodule(f"conv{self.depth}")(x))
        return self.relu(x + shortcut)


def build_network(spec: NetworkSpec, *, seed: int | None = None) -> ResNet:
    """A network with fresh weights; the same `seed` gives the same ones.

    He initialisation (fan-out), and γ = 0 in the last BN of each block, so that every block starts as its
    shortcut (Goyal et al., arXiv 1706.02677, section 5.1): without it, short trainings at high rates
    diverge.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        network = ResNet(spec)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for block in enumerate_layers(spec, 32).blocks:
            if block.convs:
                nn.init.zeros_(network.batchnorm(block.convs[-1].batchnorm).weight)
    return network


def _conv(conv: Conv) -> nn.Conv2d:
    return nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.padding, bias=False)


def _batchnorm(conv: Conv) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(conv.out_channels, affine=conv.affine)
