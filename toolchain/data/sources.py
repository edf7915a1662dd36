"""The built-in data sources: `digits`, `cifar10` and `folder:PATH`.

They are in the table dataset.SOURCES.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from slimdeploy.toolchain.data import cache
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, Split
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.data.folder import read_folder
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.images import fit_pixels, grayscale
from slimdeploy.toolchain.preprocessing import CHANNELS, PerChannel, check_statistics
from slimdeploy.toolchain.torchvision import import_torchvision

DIGITS_SIZE = 16
"""The 8×8 digits are enlarged to 16×16, the minimum at which a ResNet's last layer is more than one pixel
wide.
"""

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def digits(argument: str, options: DataOptions) -> Dataset:
    """scikit-learn's 1,797 handwritten digits (8×8 grey). A fixed 20 % of each class is the test split."""
    from sklearn.datasets import load_digits

    _no_argument("digits", argument)
    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = fit_pixels(np.repeat(grey[..., None], 3, axis=-1), options.geometry_or(DIGITS_SIZE))
    labels = bunch.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[::5]] = True
    train, test = Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test])
    preprocessing = options.completed(images.shape[1], lambda channels: statistics(train.images, channels))
    return Dataset(tuple(str(i) for i in range(10)), train, test, preprocessing)


def cifar10(argument: str, options: DataOptions) -> Dataset:
    """CIFAR-10 from `--data-dir` in torchvision's format; downloaded if missing."""
    _no_argument("cifar10", argument)
    dataset_class = import_torchvision().datasets.CIFAR10
    splits = []
    for train in (True, False):
        try:
            read = dataset_class(options.data_dir, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise SlimdeployError(
                f"cifar10 is not in {options.data_dir} and can't be downloaded ({error})"
            ) from error
        images = fit_pixels(read.data, options.geometry_or(32))
        splits.append(Split(images, np.asarray(read.targets, dtype=np.int64)))
    colours = splits[0].images

    def measured(channels: str) -> tuple[PerChannel, PerChannel]:
        return statistics(colours, channels) if channels == "gray" else (CIFAR10_MEAN, CIFAR10_STD)

    preprocessing = options.completed(colours.shape[1], measured)
    return Dataset(tuple(read.classes), splits[0], splits[1], preprocessing)


def folder(argument: str, options: DataOptions) -> Dataset:
    """The user's images, in folders of classes or listed in tables; see `listing.list_images`."""
    if not argument:
        raise SlimdeployError("folder needs a path: `data` folder:PATH")
    class_names, splits, contents = read_folder(
        argument,
        geometry=options.geometry,
        stream=options.stream,
        skip_unreadable=options.skip_unreadable,
    )
    train = splits["train"]
    preprocessing = options.completed(
        train.stored.shape[1], lambda channels: _remembered(train.stored, channels)
    )
    return Dataset(class_names, train, splits["test"], preprocessing, splits.get("val"), contents)


def statistics(images: np.ndarray | FileImages, channels: str) -> tuple[PerChannel, PerChannel]:
    """Mean and standard deviation of each colour, or of gray, over at most 10,000 of `images`, (N, H, W, 3)
    uint8.
    """
    every = max(1, len(images) // 10_000)
    count = CHANNELS[channels]
    pixels, total, squares = 0, np.zeros(count, np.int64), np.zeros(count, np.int64)
    for start in range(0, len(images), 256 * every):
        sample = images[start : start + 256 * every : every].reshape(-1, 3)
        if channels == "gray":
            sample = grayscale(sample)
        # In exact integer arithmetic: the same images give the same numbers on every machine.
        pixels += len(sample)
        total += sample.sum(0, dtype=np.int64)
        squares += (sample.astype(np.uint16) ** 2).sum(0, dtype=np.int64)
    mean = total / pixels / 255
    std = np.sqrt(np.maximum(squares / pixels / 255**2 - mean**2, 1e-6))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())


def _remembered(images: np.ndarray | FileImages, channels: str) -> tuple[PerChannel, PerChannel]:
    """`statistics`, cached for images in files."""
    if not isinstance(images, FileImages):
        return statistics(images, channels)
    key = images.fingerprint() + ("-gray" if channels == "gray" else "")

    def read(document: Any) -> tuple[PerChannel, PerChannel]:
        mean, std = (tuple(map(float, values)) for values in document)
        check_statistics(mean, std, channels)
        return mean, std

    return cache.remembered("statistics", key, lambda: statistics(images, channels), read)


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise SlimdeployError(f"`data` {name} takes no {':' + argument!r}")
