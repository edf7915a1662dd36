"""The channel configuration: what a pruned network *is*.

Flat form, for a bottleneck network: `[stem, c1, c2, c3, c1, c2, c3, …]`, 49 numbers for ResNet-50; for a
basic-block one: `[stem, c1, c2, …]`. A block whose inner widths are all 0 is removed: only its shortcut is
left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimdeploy.toolchain.errors import SlimdeployError

if TYPE_CHECKING:
    from slimdeploy.toolchain.networks.spec import Architecture


@dataclass(frozen=True)
class ChannelConfig:
    """Output channels of the stem and of every convolution of every block, in order."""

    stem: int
    blocks: tuple[tuple[int, ...], ...]

    def flat(self) -> tuple[int, ...]:
        """All numbers in order, the stem first."""
        return (self.stem, *(width for block in self.blocks for width in block))

    @classmethod
    def from_flat(cls, arch: Architecture, numbers: Sequence[int]) -> ChannelConfig:
        """Read the flat form; raises SlimdeployError unless it has exactly the numbers that `arch` needs."""
        per_block = 3 if arch.bottleneck else 2
        expected = 1 + per_block * sum(arch.depths)
        if len(numbers) != expected:
            raise SlimdeployError(f"{arch.name} needs {expected} channel numbers, not {len(numbers)}")
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            raise SlimdeployError("channel numbers must be whole numbers")
        inner = numbers[1:]
        blocks = tuple(tuple(inner[i : i + per_block]) for i in range(0, len(inner), per_block))
        return cls(numbers[0], blocks)

    def check(self, arch: Architecture) -> None:
        """Raise SlimdeployError where no network can have these widths, naming the block, value and
        expectation.
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

    def named(self, arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Pairs of block name and its widths."""
        return iter(zip(arch.block_names(), self.blocks, strict=True))

    def is_removed(self, index: int) -> bool:
        """Whether block `index` is removed, so that only its shortcut is left."""
        return self.blocks[index][0] == 0
