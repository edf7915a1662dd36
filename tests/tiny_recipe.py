"""The recipe of a run of seconds."""

from __future__ import annotations

from pathlib import Path

_TEXT = """
[data]
name = "folder:{images}"
[network]
arch = "tiny"
stem = "cifar"
[train]
epochs = {epochs}
batch_size = 16
lr = 0.05
sparsity = {sparsity}
crop_pad = 1
precision = "fp32"
[prune]
ratio = {ratio}
align = 1
statistics_images = 32
[finetune]
epochs = 1
batch_size = 16
precision = "fp32"
[bench]
batch = [2]
seconds = 0.01
ci = 1.0
launches = 2
"""


def recipe_text(images: Path, *, epochs: int = 1, sparsity: float = 0.0, ratio: float = 0.3) -> str:
    """A recipe for the tiny network on the folder `images`."""
    return _TEXT.format(images=images, epochs=epochs, sparsity=sparsity, ratio=ratio)
