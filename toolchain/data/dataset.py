"""A labelled image set, in memory or in files, its splits, and the table of sources that `--data` names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.checks import MAX_IMAGE_SIZE, check_range
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError, unknown
from slimdeploy.toolchain.model_info import Preprocessing


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
    """Square images of one size. `test` is for the final figure; validation is split off `train`."""

    class_names: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing

    def digest(self) -> str:
        """Hash of all images and labels; of images in files, of what the file system says of them."""
        found = hashlib.sha256()
        for split in (self.train, self.test):
            images = split.stored
            found.update(
                images.fingerprint().encode() if isinstance(images, FileImages) else images.tobytes()
            )
            found.update(split.labels.tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class DataOptions:
    """Which data: the name that `--data` takes, and where and how to read it. `size` None keeps the images'
    own; `stream` says whether images stay in their files, and None that they do where they don't fit in
    memory.
    """

    name: str
    data_dir: Path = Path("data")
    size: int | None = None
    stream: bool | None = None

    def __post_init__(self) -> None:
        check_range("size", self.size, 1, MAX_IMAGE_SIZE)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "data_dir": str(self.data_dir)}


Source = Callable[[str, DataOptions], Dataset]
SOURCES: dict[str, Source] = {}


def register_source(name: str) -> Callable[[Source], Source]:
    """Decorator: make a function the source that `--data NAME` or `--data NAME:ARGUMENT` calls."""

    def register(source: Source) -> Source:
        SOURCES[name] = source
        return source

    return register


def load_dataset(options: DataOptions) -> Dataset:
    """Load what `options` names. Raises SlimdeployError for an unknown name and for data that can't be
    used.
    """
    import slimdeploy.toolchain.data.sources  # noqa: F401  (registers the built-in ones)

    name, _, argument = options.name.partition(":")
    if name not in SOURCES:
        raise unknown("data", options.name, SOURCES)
    dataset = SOURCES[name](argument, options)
    if options.stream and not isinstance(dataset.train.stored, FileImages):
        raise SlimdeployError(f"{name} can't be streamed: only folder:PATH is in files")
    if len(dataset.class_names) < 2:
        raise SlimdeployError(
            f"{options.name}: only one class ({dataset.class_names[0]}); at least 2 are needed"
        )
    return dataset


def split_validation(split: Split, fraction: float, *, seed: int = 0) -> tuple[Split, Split]:
    """Split `fraction` of every class off as validation; the same seed gives the same split.

    Returns (training, validation). Raises SlimdeployError where either part would be empty.
    """
    chosen = _per_class(split.labels, lambda count: round(count * fraction), seed)
    if not 0 < len(chosen) < len(split):
        raise SlimdeployError(
            f"a validation share of {fraction:g} leaves {len(split) - len(chosen)} images for training "
            f"and {len(chosen)} for validation: both need some"
        )
    rest = np.setdiff1d(np.arange(len(split)), chosen)
    return split.take(rest), split.take(chosen)


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
