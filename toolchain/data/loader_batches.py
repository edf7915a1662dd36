"""Training batches made by the caller, e.g. by a DataLoader, in place of those of a Dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from slimdeploy.toolchain.data.feed import Batch, LoaderFeed
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing


@dataclass(frozen=True)
class OwnBatches:
    """The caller's batches in place of a Dataset: to train on, to validate on after each epoch, and to test
    on once at the end.
    """

    train: LoaderFeed
    validation: LoaderFeed | None
    test: LoaderFeed | None
    preprocessing: Preprocessing
    """Preprocessing that the caller applied to the images."""


class LoaderBatches:
    """Like `TrainingBatches`, for the caller's batches: an epoch is one pass over `feed`.

    Raises SlimdeployError like LoaderFeed, for a batch of less than `least` images (2 with BN), and if
    a pass has more or fewer batches than the first one.
    """

    weight = 1.0
    """Weight of this process's mean over a batch: always 1, because batches aren't shared with other
    processes.
    """

    def __init__(self, feed: LoaderFeed, *, least: int) -> None:
        self._feed, self._count, self._least = feed, feed.count_batches(), least
        self.batch_size = 0
        """Number of images in the largest batch so far."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self._count

    def epoch(self, index: int) -> Iterator[Batch]:
        """Batches of epoch `index`: images (B, C, H, W) float32 and labels (B,) int64."""
        given = 0
        for images, labels in self._feed:
            if len(labels) < self._least:
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
