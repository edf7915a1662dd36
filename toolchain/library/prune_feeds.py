"""The images used by pruning, from a dataset or from the caller's batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slimdeploy.toolchain.data.dataset import Dataset, balanced_subset
from slimdeploy.toolchain.data.feed import (
    ALL,
    TEST_BATCH_SIZE,
    Batch,
    Feed,
    LoaderFeed,
    SplitFeed,
    feed_of_tests,
)
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.recalibration import shuffled

JUDGED_IMAGES = 1024
"""Number of training images on which recalibration must improve the network."""


@dataclass(frozen=True)
class PruningFeeds:
    """Training images for activations, for new BN statistics and for judging them; test images or None."""

    statistics: Feed
    recalibration: Feed
    judged: Feed
    test: Feed | None


def pruning_feeds(
    data: Dataset | Iterable[Batch],
    test: Iterable[Batch] | None,
    info: ModelInfo,
    options: PruneOptions,
    *,
    device: str,
) -> PruningFeeds:
    """The images that `options` need from `data`, for the network of `info`. `test` overrides a dataset's
    test images.
    """

    def feed(batches: Iterable[Batch], images: int = ALL, name: str = "data") -> LoaderFeed:
        return LoaderFeed(batches, device, info.preprocessing.image_shape, info.graph.classes, images, name)

    tested: Feed | None = None if test is None else feed(test, name="test")
    if not isinstance(data, Dataset):
        return PruningFeeds(
            feed(data, options.statistics_images),
            feed(data, options.recalibration_images),
            feed(data, JUDGED_IMAGES),
            tested,
        )
    how = data.preprocessing
    recalibration = balanced_subset(data.train, options.recalibration_images)
    return PruningFeeds(
        SplitFeed(balanced_subset(data.train, options.statistics_images), how, device),
        shuffled(recalibration, how, device=device),
        SplitFeed(balanced_subset(recalibration, JUDGED_IMAGES), how, device, TEST_BATCH_SIZE),
        tested or feed_of_tests(data, device),
    )
