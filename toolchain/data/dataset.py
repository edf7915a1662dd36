"""A labelled image set, in memory or in files, its splits, and the table of sources that `--data` names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.preprocessing_options import PreprocessingOptions
from slimdeploy.toolchain.registry import Registry


@dataclass(frozen=True)
class Split:
    """`stored` (N, H, W, 3) uint8, in memory or in files, and `labels` (N,) int64."""

    stored: np.ndarray | FileImages
    labels: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """All of them in memory. What may be given a whole set of files takes parts of `stored` instead."""
        return np.asarray(self.stored)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices`, in that order."""
        return Split(self.stored.take(indices, 0), self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """Square images of one size. `test` is for the final figure; `validation` to choose by: None where the
    data brings none, and a share of `train` is held out for it.
    """

    class_names: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing
    validation: Split | None = None

    def held_out(self, share: float, *, limit: int | None = None) -> tuple[Split, Split]:
        """Training and validation images: the data's own validation split, or `share` of the training images;
        a class-balanced `limit` of these is taken first.
        """
        train = balanced_subset(self.train, limit)
        return (train, self.validation) if self.validation else split_validation(train, share)

    def digest(self) -> str:
        """Hash of the class names, all images and labels; of images in files, of what the file system says of
        them.
        """
        found = hashlib.sha256(json.dumps(self.class_names).encode())
        for split in (self.train, self.test, *([self.validation] if self.validation else [])):
            images = split.stored
            found.update(
                images.fingerprint().encode() if isinstance(images, FileImages) else images.tobytes()
            )
            found.update(split.labels.tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class DataOptions(PreprocessingOptions):
    """Which data: the name that `--data` takes, where it is, and how its images become the network's input.

    `stream` says whether images stay in their files, and None that they do where they don't fit in memory.
    """

    name: str
    data_dir: Path = Path("data")
    stream: bool | None = None
    skip_unreadable: bool = False
    """Leave files out that aren't readable images, instead of refusing them."""

    def or_else(self, model: Preprocessing) -> DataOptions:
        """The same data with the preprocessing of a model where nothing is chosen."""
        return self.fed_to(self.applied_to(model))

    def fed_to(self, model: Preprocessing) -> DataOptions:
        """The same data with the preprocessing of a model."""
        resize = "x".join(map(str, model.resize)) if isinstance(model.resize, tuple) else model.resize
        return replace(
            self,
            size=model.size,
            preprocessing=None,
            resize=resize,
            interpolation=model.interpolation,
            mean=model.mean,
            std=model.std,
            channels=model.channels,
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "data_dir": str(self.data_dir)}


Source = Callable[[str, DataOptions], Dataset]
"""What `--data NAME` or `--data NAME:ARGUMENT` calls, with the argument."""
_OWN = ("digits", "cifar10", "folder")
SOURCES: Registry[Source] = Registry(
    "data", Callable, {name: f"slimdeploy.toolchain.data.sources:{name}" for name in _OWN}
)


def load_dataset(options: DataOptions) -> Dataset:
    """Load what `options` names. Raises SlimdeployError for an unknown name and for data that can't be
    used.
    """
    name, _, argument = options.name.partition(":")
    dataset = SOURCES.find(name)(argument, options)
    if options.stream and not isinstance(dataset.train.stored, FileImages):
        raise SlimdeployError(f"{name} can't be streamed: only folder:PATH is in files")
    if len(dataset.class_names) < 2:
        raise SlimdeployError(
            f"{options.name}: only one class ({dataset.class_names[0]}); at least 2 are needed"
        )
    return dataset


def split_validation(split: Split, fraction: float, *, seed: int = 0) -> tuple[Split, Split]:
    """Split `fraction` of the images off as validation, every class in proportion; the same seed gives the
    same split.

    Returns (training, validation). Raises SlimdeployError where either part would be empty.
    """
    classes, counts = np.unique(split.labels, return_counts=True)
    shares = dict(zip(classes.tolist(), _proportional_shares(counts, fraction, seed), strict=True))
    wanted = iter([shares[c] for c in sorted(shares)])
    chosen = _per_class(split.labels, lambda _: next(wanted), seed)
    if not 0 < len(chosen) < len(split):
        raise SlimdeployError(
            f"a validation share of {fraction:g} leaves {len(split) - len(chosen)} images for training "
            f"and {len(chosen)} for validation: both need some"
        )
    rest = np.setdiff1d(np.arange(len(split)), chosen)
    return split.take(rest), split.take(chosen)


def _proportional_shares(counts: np.ndarray, fraction: float, seed: int) -> list[int]:
    """`fraction` of all images, split over classes that hold `counts` each: every class its whole part, and
    what is left to the largest remainders (Hamilton's method; equal ones in random order). At least one image
    of a class is left for training.
    """
    exact = counts * fraction
    shares = np.floor(exact).astype(int)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(shares[order] - exact[order], kind="stable")]
    order = order[shares[order] < counts[order] - 1]
    shares[order[: max(round(exact.sum()) - shares.sum(), 0)]] += 1
    return np.minimum(shares, np.maximum(counts - 1, 0)).tolist()


def balanced_subset(split: Split, limit: int | None, *, seed: int = 0) -> Split:
    """`limit` images, as evenly over the classes as it goes; the whole split where it has no more."""
    if limit is None or limit >= len(split):
        return split
    classes, counts = np.unique(split.labels, return_counts=True)
    share = dict(zip(classes.tolist(), _even_shares(counts, limit), strict=True))
    wanted = iter([share[c] for c in sorted(share)])
    return split.take(_per_class(split.labels, lambda _: next(wanted), seed))


def _even_shares(counts: np.ndarray, limit: int) -> list[int]:
    """Split `limit` over classes that hold `counts` images each, none given more than it holds."""
    shares = np.zeros(len(counts), dtype=int)
    while (left := limit - shares.sum()) > 0:
        room = np.flatnonzero(shares < counts)
        room = room[np.argsort(shares[room], kind="stable")]  # what is left over goes to those with least
        give = np.full(len(room), left // len(room))
        give[: left % len(room)] += 1
        shares[room] = np.minimum(shares[room] + give, counts[room])
    return shares.tolist()


def _per_class(labels: np.ndarray, amount: Callable[[int], int], seed: int) -> np.ndarray:
    """Sorted indices of `amount(images of the class)` random images of each class, in class order."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[: amount(len(members))])
    return np.sort(np.concatenate(chosen))
