"""The data that a model was trained on, with its size and preprocessing."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, load_dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import ModelInfo, check_class_names
from slimdeploy.toolchain.networks.graph import Graph


def data_of(info: ModelInfo, source: Path) -> DataOptions:
    """The data that a model was last trained on; raises SlimdeployError if the model doesn't contain it."""
    for entry in reversed(info.provenance):
        if data := entry.get("data"):
            return _there(
                DataOptions(
                    data["name"],
                    Path(data["data_dir"]),
                    stream=data.get("stream"),
                    skip_unreadable=data.get("skip_unreadable", False),
                ),
                source,
            )
    raise SlimdeployError(f"{source} doesn't say what data it was trained on: pass `data`")


def for_network(
    name: str | None, graph: Graph, data: DataOptions, dataset: Dataset
) -> tuple[DataOptions, Dataset]:
    """`data` and its `dataset` for the network called `name`: in gray if it takes one channel. Raises
    SlimdeployError if other channels were chosen.
    """
    fitting = data.for_network(name or graph.arch, graph.image_channels)
    return (data, dataset) if fitting == data else (fitting, load_dataset(fitting))


def trained_on(info: ModelInfo, data: DataOptions) -> bool:
    """Whether the model was last trained on `data`, by name."""
    known = [entry["data"]["name"] for entry in info.provenance if entry.get("data")]
    return known[-1:] == [data.name]


def _there(data: DataOptions, source: Path) -> DataOptions:
    """Check the folder of the data; raises SlimdeployError if it is missing, e.g. in another working
    directory.
    """
    name, _, path = data.name.partition(":")
    if name == "folder" and not Path(path).expanduser().exists():
        where = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
        raise SlimdeployError(f"{source} was trained on {path}, which does not exist{where}: pass `data`")
    return data


def dataset_for(info: ModelInfo, data: DataOptions, source: Path) -> Dataset:
    """Load `data` with the model's own preprocessing.

    Raises SlimdeployError if its classes differ from those of the model.
    """
    size = info.preprocessing.size
    if data.size not in (None, size):
        raise SlimdeployError(f"`size` {data.size}, but {source} takes {size}×{size}: leave `size` out")
    dataset = load_dataset(data.fed_to(info.preprocessing))
    check_class_names(data.name, dataset.class_names, str(source), info.class_names)
    return dataset
