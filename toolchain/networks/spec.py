"""What a network is, as plain data: architecture, stem, classes and channel configuration. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.networks.channels import ChannelConfig


@dataclass(frozen=True)
class Architecture:
    """A ResNet: its block kind and how many blocks each of the four layers has (He et al., 2015, table 1)."""

    name: str
    bottleneck: bool
    depths: tuple[int, int, int, int]
    stem_width: int = 64
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)

    def block_names(self) -> list[str]:
        """Blocks in order, by torchvision's names: `layer1.0`, `layer1.1`, …"""
        return [f"layer{i + 1}.{j}" for i, depth in enumerate(self.depths) for j in range(depth)]

    def has_projection(self, block: str) -> bool:
        """Whether the block's shortcut is a 1×1 convolution: fixed by the architecture, not by the widths."""
        layer, index = block.removeprefix("layer").split(".")
        return index == "0" and (self.bottleneck or layer != "1")

    def full_channels(self) -> ChannelConfig:
        """The channel configuration of the unpruned network."""
        blocks = []
        for width, depth in zip(self.widths, self.depths, strict=True):
            inner = (width, width, width * 4) if self.bottleneck else (width, width)
            blocks += [inner] * depth
        return ChannelConfig(self.stem_width, tuple(blocks))


@dataclass(frozen=True)
class Stem:
    """The first convolution (stem) and whether a 3×3 stride-2 max-pool follows it."""

    kernel: int
    stride: int
    max_pool: bool
    shortcut_affine: bool
    """Default for the BN of the projection shortcuts: the reference trains the CIFAR stems without γ and β
    there.
    """


ARCHITECTURES: dict[str, Architecture] = {}
STEMS: dict[str, Stem] = {
    "cifar-pool": Stem(kernel=3, stride=1, max_pool=True, shortcut_affine=False),
    "cifar": Stem(kernel=3, stride=1, max_pool=False, shortcut_affine=False),
    "imagenet": Stem(kernel=7, stride=2, max_pool=True, shortcut_affine=True),
}


def register_architecture(architecture: Architecture) -> Architecture:
    """Make an architecture known by its name to every command."""
    ARCHITECTURES[architecture.name] = architecture
    return architecture


register_architecture(Architecture("resnet18", bottleneck=False, depths=(2, 2, 2, 2)))
register_architecture(Architecture("resnet34", bottleneck=False, depths=(3, 4, 6, 3)))
register_architecture(Architecture("resnet50", bottleneck=True, depths=(3, 4, 6, 3)))
register_architecture(Architecture("resnet101", bottleneck=True, depths=(3, 4, 23, 3)))
register_architecture(Architecture("resnet152", bottleneck=True, depths=(3, 8, 36, 3)))


def architecture(name: str) -> Architecture:
    """Look an architecture up; raises SlimdeployError that names the nearest known one."""
    if name not in ARCHITECTURES:
        raise unknown("arch", name, ARCHITECTURES)
    return ARCHITECTURES[name]


@dataclass(frozen=True)
class NetworkSpec:
    """Everything needed to build a network. Raises SlimdeployError when built with values that contradict."""

    arch: str
    stem: str
    classes: int
    channels: ChannelConfig
    shortcut_affine: bool

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise unknown("stem", self.stem, STEMS)
        if self.classes < 1:
            raise SlimdeployError(f"a network needs at least 1 class, not {self.classes}")
        self.channels.check(self.architecture)

    @property
    def architecture(self) -> Architecture:
        return architecture(self.arch)

    def with_channels(self, channels: ChannelConfig) -> NetworkSpec:
        """The same network at other widths."""
        return replace(self, channels=channels)

    def full(self) -> NetworkSpec:
        """The same network, unpruned."""
        return self.with_channels(self.architecture.full_channels())

    def to_json(self) -> dict[str, Any]:
        return {
            "arch": self.arch,
            "stem": self.stem,
            "classes": self.classes,
            "channels": list(self.channels.flat()),
            "shortcut_affine": self.shortcut_affine,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> NetworkSpec:
        """Raises KeyError, TypeError or SlimdeployError on a document that isn't a network spec."""
        arch = architecture(document["arch"])
        return cls(
            arch=arch.name,
            stem=document["stem"],
            classes=int(document["classes"]),
            channels=ChannelConfig.from_flat(arch, document["channels"]),
            shortcut_affine=bool(document["shortcut_affine"]),
        )


def network_spec(
    arch: str | None = None,
    *,
    stem: str | None = None,
    classes: int = 10,
    channels: ChannelConfig | None = None,
    shortcut_affine: bool | None = None,
) -> NetworkSpec:
    """A network spec; what is None is the reference's: ResNet-50, `cifar-pool`, full widths, shortcut BN as
    the stem has it.
    """
    arch, stem = arch or "resnet50", stem or "cifar-pool"
    known = architecture(arch)
    if shortcut_affine is None:
        shortcut_affine = stem in STEMS and STEMS[stem].shortcut_affine
    return NetworkSpec(arch, stem, classes, channels or known.full_channels(), shortcut_affine)
