"""The images for checking a bundle, chosen on the host by a fixed rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.runtime.onnx_file import carried_info, read_onnx

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


@dataclass(frozen=True)
class Images:
    """`golden` (N, H, W, 3) uint8 and `evaluation` (M, H, W, 3) uint8 with its `labels` (M,)."""

    golden: np.ndarray
    evaluation: np.ndarray
    labels: np.ndarray
    source: str
    """Their source, for the provenance."""
    of_training: bool = False
    """Whether they belong to the data that the model was trained on."""


def images_for(
    model: Path, data: DataOptions | None, *, golden: int, evaluation: int, seed: int = 0
) -> Images:
    """Golden and evaluation images for the ONNX file `model`: from the test split of `data`, by default of
    the data that it was trained on, balanced over the classes if possible. Noise if the data is unknown.
    """
    from slimdeploy.toolchain.data.dataset import balanced_subset
    from slimdeploy.toolchain.data.of_model import data_of, dataset_for, trained_on

    info = carried_info(model, read_onnx(model))
    if data is None and not any(entry.get("data") for entry in info.provenance):
        log(
            f"{model} doesn't say what data it was trained on: the golden images are noise, and the device "
            "measures no accuracy; `data` gives images"
        )
        return noise_images(model, golden, seed=seed)
    data = data or data_of(info, model)
    test = dataset_for(info, data, model).test
    chosen = balanced_subset(test, golden, seed=seed).images
    measured = balanced_subset(test, evaluation, seed=seed + 1) if evaluation else test.take(np.arange(0))
    source = f"{data.name}, test split, seed {seed}"
    return Images(chosen, measured.images, measured.labels, source, trained_on(info, data))


def noise_images(model: Path, count: int, *, seed: int = 0) -> Images:
    """Golden images for a bundle without data, of the size that the ONNX file `model` expects: coarse noise,
    to which every layer reacts. No evaluation set.
    """
    size = carried_info(model, read_onnx(model)).preprocessing.size
    blocks = -(-size // 4)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, blocks, blocks, 3), dtype=np.uint8)
    golden = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
    return Images(
        golden, np.empty((0, size, size, 3), np.uint8), np.empty(0, np.int32), f"noise, seed {seed}"
    )
