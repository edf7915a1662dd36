"""The images passed to `train` and `finetune`: a Dataset, or batches made by the caller."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.data.feed import Batch, LoaderFeed
from slimdeploy.toolchain.data.loader_batches import OwnBatches
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.from_module import check_size
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.training.options import OF_DATASETS, TrainOptions


@dataclass(frozen=True)
class Given:
    """The parameters with these names. Raises SlimdeployError if they contradict each other."""

    data: Dataset | Iterable[Batch]
    val: Iterable[Batch] | None
    test: Iterable[Batch] | None
    asked_size: int | None

    def __post_init__(self) -> None:
        if self.dataset is None:
            return
        for name, value in (("val", self.val), ("test", self.test)):
            if value is not None:
                raise SlimdeployError(f"`{name}` is for batches: a Dataset as `data` brings its own")
        check_size(self.asked_size, self.dataset)

    @property
    def dataset(self) -> Dataset | None:
        return self.data if isinstance(self.data, Dataset) else None

    @property
    def size(self) -> int | None:
        """Side of the images in pixels; None if unknown."""
        return self.dataset.preprocessing.size if self.dataset else self.asked_size

    def for_network(self, info: ModelInfo, device: str, options: TrainOptions) -> Dataset | OwnBatches:
        """The data to train the network of `info` on.

        Raises SlimdeployError if options need a Dataset or validation batches that weren't given.
        """
        if isinstance(self.data, Dataset):
            return self.data
        for name in OF_DATASETS:
            if getattr(options, name) != getattr(TrainOptions, name):
                raise SlimdeployError(f"`{name}` needs a Dataset: batches are used as `data` gives them")
        if options.patience and self.val is None:
            raise SlimdeployError("`patience` needs `val`, batches to validate on")

        def feed(source: Iterable[Batch], name: str) -> LoaderFeed:
            return LoaderFeed(source, device, info.preprocessing.image_shape, info.graph.classes, name=name)

        return OwnBatches(
            feed(self.data, "data"),
            None if self.val is None else feed(self.val, "val"),
            None if self.test is None else feed(self.test, "test"),
            info.preprocessing,
        )
