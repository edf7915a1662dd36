"""Labelled images in memory or in files, their splits, and the table of data sources for `--data`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.declared import typed
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.preprocessing_options import PreprocessingOptions
from slimdeploy.toolchain.registry import Registry


@dataclass(frozen=True)
class Split:
    """`stored` (N, H, W, 3) uint8, in memory or in files, and `labels` (N,) int64. Gray images, (N, H, W) or
    (N, H, W, 1), are stored with three equal channels. Raises SlimdeployError for arrays of another shape or
    type.
    """

    stored: np.ndarray | FileImages
    labels: np.ndarray

    def __post_init__(self) -> None:
        if isinstance(self.stored, np.ndarray):
            object.__setattr__(self, "stored", _in_colour(self.stored))
        shape, dtype = self.stored.shape, self.stored.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise SlimdeployError(f"`stored` must be images (N, H, W, 3) uint8, not {shape} {dtype}")
        if self.labels.dtype.kind not in "iu" or self.labels.shape != shape[:1]:
            given = f"{self.labels.shape} {self.labels.dtype}"
            raise SlimdeployError(f"`labels` must be integers {shape[:1]}, one for each image, not {given}")
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))

    def __repr__(self) -> str:
        height, width = self.stored.shape[1:3]
        return f"Split({len(self):,} images of {width}×{height} pixels)"

    @property
    def images(self) -> np.ndarray:
        """All images in memory. Code that can handle sets in files reads parts of `stored` instead."""
        return np.asarray(self.stored)

    def __len__(self) -> int:
        return len(self.labels)

    def in_memory(self) -> Split:
        """The same images in memory."""
        return Split(self.images, self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices`, in that order."""
        return Split(self.stored.take(indices, 0), self.labels[indices])


def _in_colour(images: np.ndarray) -> np.ndarray:
    """Gray images with three equal channels; others as they are."""
    if images.ndim == 3:
        images = images[..., None]
    return images.repeat(3, -1) if images.ndim == 4 and images.shape[3] == 1 else images


@dataclass(frozen=True)
class Dataset:
    """Square images of one size. `test` is for the final result. `validation` is None if the data has no
    validation split; a share of `train` is then held out.

    Raises SlimdeployError for a split without images or with labels beyond `class_names`.
    """

    class_names: tuple[str, ...]
    train: Split
    test: Split
    preprocessing: Preprocessing
    validation: Split | None = None
    contents: Callable[[], str] | None = None
    """Hash of the files that the images are decoded from; None: the images themselves are hashed."""

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("test", self.test), ("validation", self.validation)):
            if split is None:
                continue
            if not len(split):
                raise SlimdeployError(f"`{name}` contains no images")
            low, high = split.labels.min(), split.labels.max()
            if low < 0 or high >= len(self.class_names):
                raise SlimdeployError(
                    f"`{name}` contains the label {low if low < 0 else high}, but there are "
                    f"{len(self.class_names)} `class_names`"
                )

    def held_out(self, share: float, *, limit: int | None = None) -> tuple[Split, Split]:
        """Training and validation images: the data's own validation split, or else `share` of the training
        images. A class-balanced `limit` of the training images is taken first.
        """
        train = balanced_subset(self.train, limit)
        return (train, self.validation) if self.validation else split_validation(train, share)

    def digest(self) -> str:
        """Hash of the class names, images and labels: the same wherever the files are, and whether or not the
        images are streamed.
        """
        found = hashlib.sha256(json.dumps(self.class_names).encode())
        if self.contents:
            found.update(f"{self.preprocessing.geometry.key} {self.contents()}".encode())
        for split in (self.train, self.test, *([self.validation] if self.validation else [])):
            if not self.contents:
                found.update(split.images.tobytes())
            found.update(split.labels.tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class DataOptions(PreprocessingOptions):
    """Which data: the name for `--data`, its folder, and the preprocessing of its images.

    `stream`: images stay in their files; None: only if they don't fit in memory.
    """

    name: str
    data_dir: Path = Path("data")
    stream: bool | None = None
    skip_unreadable: bool = False
    """Skip unreadable images instead of raising an error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "name", typed(self.name, str, "`data`"))
        typed(self.stream, bool | None, "`stream`")
        typed(self.skip_unreadable, bool, "`skip_unreadable`")
        if not isinstance(self.data_dir, str | Path):
            raise SlimdeployError(f"`data_dir` must be the path of a folder, not {self.data_dir!r}")
        object.__setattr__(self, "data_dir", Path(self.data_dir))

    def or_else(self, model: Preprocessing) -> DataOptions:
        """The same data, with the preprocessing of a model as default."""
        return self.fed_to(self.applied_to(model))

    def fed_to(self, model: Preprocessing) -> DataOptions:
        """The same data, with the preprocessing of a model."""
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
"""A data source: loads what `--data NAME` or `--data NAME:ARGUMENT` refers to."""
_OWN = ("digits", "cifar10", "folder")
SOURCES: Registry[Source] = Registry(
    "data", Callable, {name: f"slimdeploy.toolchain.data.sources:{name}" for name in _OWN}
)


def load_dataset(options: DataOptions) -> Dataset:
    """Load the data of `options`. Raises SlimdeployError for an unknown name and for unusable data."""
    name, _, argument = options.name.partition(":")
    if name not in SOURCES and Path(options.name).expanduser().is_dir():
        raise SlimdeployError(f"`data` {options.name} is a folder: write folder:{options.name}")
    dataset = SOURCES.find(name)(argument, options)
    if options.stream and not isinstance(dataset.train.stored, FileImages):
        raise SlimdeployError(f"{name} can't be streamed: only folder:PATH can")
    if len(dataset.class_names) < 2:
        raise SlimdeployError(
            f"{options.name}: only one class ({dataset.class_names[0]}); at least 2 are needed"
        )
    return dataset


def image_side(options: DataOptions) -> int:
    """The side in pixels of the images that `options` make: as chosen, else their own."""
    geometry = options.geometry
    return geometry.size if geometry else load_dataset(options).preprocessing.size


def split_validation(split: Split, fraction: float, *, seed: int = 0) -> tuple[Split, Split]:
    """Hold out `fraction` of the images as validation, in every class; reproducible by `seed`.

    Returns (training, validation). Raises SlimdeployError if either part would be empty.
    """
    classes, counts = np.unique(split.labels, return_counts=True)
    shares = dict(zip(classes.tolist(), _proportional_shares(counts, fraction, seed), strict=True))
    wanted = iter([shares[c] for c in sorted(shares)])
    chosen = _per_class(split.labels, lambda _: next(wanted), seed)
    if not 0 < len(chosen) < len(split):
        raise SlimdeployError(
            f"a validation share of {fraction:g} leaves {len(split) - len(chosen)} images for training "
            f"and {len(chosen)} for validation: both need at least 1"
        )
    rest = np.setdiff1d(np.arange(len(split)), chosen)
    return split.take(rest), split.take(chosen)


def _proportional_shares(counts: np.ndarray, fraction: float, seed: int) -> list[int]:
    """`fraction` of all images, distributed over classes with `counts` images each: first the whole numbers,
    then one more for the largest remainders (Hamilton's method; ties at random). At least one image of each
    class is left for training.
    """
    exact = counts * fraction
    shares = np.floor(exact).astype(int)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(shares[order] - exact[order], kind="stable")]
    order = order[shares[order] < counts[order] - 1]
    shares[order[: max(round(exact.sum()) - shares.sum(), 0)]] += 1
    return np.minimum(shares, np.maximum(counts - 1, 0)).tolist()


def balanced_subset(split: Split, limit: int | None, *, seed: int = 0) -> Split:
    """`limit` images, distributed over the classes as evenly as possible; the whole split if it is
    smaller.
    """
    if limit is None or limit >= len(split):
        return split
    classes, counts = np.unique(split.labels, return_counts=True)
    share = dict(zip(classes.tolist(), _even_shares(counts, limit), strict=True))
    wanted = iter([share[c] for c in sorted(share)])
    return split.take(_per_class(split.labels, lambda _: next(wanted), seed))


def _even_shares(counts: np.ndarray, limit: int) -> list[int]:
    """Distribute `limit` over classes with `counts` images each, at most `counts`."""
    shares = np.zeros(len(counts), dtype=int)
    while (left := limit - shares.sum()) > 0:
        room = np.flatnonzero(shares < counts)
        room = room[np.argsort(shares[room], kind="stable")]  # the remainder goes to the smallest shares
        give = np.full(len(room), left // len(room))
        give[: left % len(room)] += 1
        shares[room] = np.minimum(shares[room] + give, counts[room])
    return shares.tolist()


def _per_class(labels: np.ndarray, amount: Callable[[int], int], seed: int) -> np.ndarray:
    """Sorted indices of `amount(images)` random images of each class, class by class."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(members)[: amount(len(members))])
    return np.sort(np.concatenate(chosen))
