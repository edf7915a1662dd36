"""Training batches that the caller makes, such as a DataLoader gives them, instead of a Dataset's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from slimdeploy.toolchain.data.feed import Batch, LoaderFeed
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing


@dataclass(frozen=True)
class OwnBatches:
    """What stands for a Dataset: batches to train on, to validate on after each epoch, to test on once."""

    train: LoaderFeed
    validation: LoaderFeed | None
    test: LoaderFeed | None
    preprocessing: Preprocessing
    """How the caller's images became the network's input."""


class LoaderBatches:
    """One pass over `feed` an epoch, as `TrainingBatches` gives those of a split.

    Raises SlimdeployError as LoaderFeed does, for a batch of one image, and where a pass gives more or fewer
    batches than the first one.
    """

    weight = 1.0
    """What a mean over a batch counts: no other process shares it."""

    def __init__(self, feed: LoaderFeed) -> None:
        self._feed, self._count = feed, feed.count_batches()
        self.batch_size = 0
        """Images in the largest batch so far."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._count

    def epoch(self, index: int) -> Iterator[Batch]:
        """Batches of epoch `index`: images (B, 3, H, W) float32 and labels (B,) int64."""
        given = 0
        for images, labels in self._feed:
            if len(labels) < 2:
                raise SlimdeployError(
                    f"`{self._feed.name}` gives a batch of one image, and BN needs 2 (drop_last)"
                )
            self.batch_size, given = max(self.batch_size, len(labels)), given + 1
            if given <= self._count:
                yield images, labels
        if given != self._count:
            raise SlimdeployError(
                f"`{self._feed.name}` gives {given} batches in epoch {index + 1}, {self._count} before: each "
                "pass must give as many"
            )
