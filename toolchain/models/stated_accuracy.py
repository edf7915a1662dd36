"""The test accuracy that a model file states, against the one measured."""

from __future__ import annotations

import math
from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import CheckFailed
from slimdeploy.toolchain.models.model_info import ModelInfo

SLACK = 0.1
"""Tolerance besides sampling error: the measured images may be balanced over the classes, the test split need
not be.
"""


def check_stated_accuracy(model: Path, info: ModelInfo, measured: float, images: int) -> None:
    """Raises CheckFailed if the accuracy `measured` is far below that in the metadata of `model`: the file is
    damaged, or belongs to another network. It was measured on so many test images of the data that the model
    was trained on.
    """
    known = info.metrics.get("accuracy")
    stated = known.get("test") if isinstance(known, dict) else None
    if not isinstance(stated, float):
        return
    error = math.sqrt(stated * (1 - stated) / images) if 0 < stated < 1 else 0.0
    drop = (artifacts.read_sidecar(model) or {}).get("max_drop")  # from calibrate, in points
    allowed = SLACK + 4 * error + (drop / 100 if isinstance(drop, (int, float)) else 0.0)
    if measured < stated - allowed:
        raise CheckFailed(
            f"{model}: {measured:.1%} of {images} test images correct, but the file states {stated:.1%} on "
            "the test split: it is damaged, or another network; nothing written"
        )
