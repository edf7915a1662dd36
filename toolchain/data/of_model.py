"""The data that fits a model: what it was trained on, at its size, with its preprocessing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, load_dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import ModelInfo


def data_of(info: ModelInfo, source: Path) -> DataOptions:
    """The data that a model was last trained on; raises SlimdeployError where it says nothing of it."""
    for entry in reversed(info.provenance):
        if data := entry.get("data"):
            return DataOptions(data["name"], Path(data["data_dir"]), data["size"], data.get("stream"))
    raise SlimdeployError(f"{source} doesn't say what data it was trained on: pass --data")


def dataset_for(info: ModelInfo, data: DataOptions, source: Path) -> Dataset:
    """Load `data` at the model's image size, with the model's own preprocessing.

    Raises SlimdeployError where the classes aren't those that the model was trained on.
    """
    dataset = load_dataset(replace(data, size=data.size or info.preprocessing.size))
    size = dataset.preprocessing.size
    wanted = info.preprocessing.size
    if size != wanted:
        raise SlimdeployError(f"{data.name} is {size}×{size}, but {source} takes {wanted}×{wanted}")
    if dataset.class_names != info.class_names:
        known = ", ".join(info.class_names[:3])
        raise SlimdeployError(
            f"{data.name} has other classes ({', '.join(dataset.class_names[:3])}, …) "
            f"than {source} ({known}, …)"
        )
    return replace(dataset, preprocessing=info.preprocessing)
