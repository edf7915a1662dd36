"""The built-in sources of images: `digits`, `cifar10` and `folder:PATH`.

Another source is one more function under `@register_source("name")`.
"""

from __future__ import annotations

import os

import numpy as np

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data import decoding
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, Split, register_source
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.data.torchvision import import_torchvision
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import Preprocessing

DIGITS_SIZE = 16
"""The 8×8 digits are enlarged twice: the least at which a ResNet's last layer still sees more than one
pixel wide.
"""

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@register_source("digits")
def digits(argument: str, options: DataOptions) -> Dataset:
    """scikit-learn's 1,797 handwritten digits (8×8 grey). A fixed fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    _no_argument("digits", argument)
    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = decoding.resize(np.repeat(grey[..., None], 3, axis=-1), options.size or DIGITS_SIZE)
    labels = bunch.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[::5]] = True
    train, test = Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test])
    return Dataset(tuple(str(i) for i in range(10)), train, test, measured_preprocessing(train.images))


@register_source("cifar10")
def cifar10(argument: str, options: DataOptions) -> Dataset:
    """CIFAR-10 as torchvision reads it, from `--data-dir`; downloaded there if it isn't there yet."""
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
        images = read.data if options.size in (None, 32) else decoding.resize(read.data, options.size)
        splits.append(Split(images, np.asarray(read.targets, dtype=np.int64)))
    preprocessing = Preprocessing(splits[0].images.shape[1], CIFAR10_MEAN, CIFAR10_STD)
    return Dataset(tuple(read.classes), splits[0], splits[1], preprocessing)


@register_source("folder")
def folder(argument: str, options: DataOptions) -> Dataset:
    """One's own images: `PATH/train/<class>/…` and `PATH/test/<class>/…`, decoded once and then cached."""
    if not argument:
        raise SlimdeployError("folder needs a path: --data folder:PATH")
    class_names, train, test = decoding.read_folder(
        os.path.expanduser(argument), size=options.size, stream=options.stream
    )
    return Dataset(class_names, train, test, _remembered(train.stored))


def measured_preprocessing(images: np.ndarray | FileImages) -> Preprocessing:
    """Mean and standard deviation of each colour over `images` (N, H, W, 3) uint8, at most 10,000 of them."""
    every = max(1, len(images) // 10_000)
    pixels, total, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
    for start in range(0, len(images), 256 * every):
        sample = images[start : start + 256 * every : every].reshape(-1, 3)
        # In integers, exactly: the same images give the same numbers on every machine.
        pixels += len(sample)
        total += sample.sum(0, dtype=np.int64)
        squares += (sample.astype(np.uint16) ** 2).sum(0, dtype=np.int64)
    mean = total / pixels / 255
    std = np.sqrt(np.maximum(squares / pixels / 255**2 - mean**2, 1e-6))
    red, green, blue = np.round(mean, 4).tolist()
    s_red, s_green, s_blue = np.round(std, 4).tolist()
    return Preprocessing(images.shape[1], (red, green, blue), (s_red, s_green, s_blue))


def _remembered(images: np.ndarray | FileImages) -> Preprocessing:
    """`measured_preprocessing`; of images in files it is kept in the cache, so that they are read once."""
    if not isinstance(images, FileImages):
        return measured_preprocessing(images)
    path = decoding.cache_root().parent / "statistics" / f"{images.fingerprint()}.json"
    if not path.exists():
        artifacts.write_json(path, vars(measured_preprocessing(images)))
    known = artifacts.read_json(path, "cache of statistics")
    return Preprocessing(known["size"], tuple(known["mean"]), tuple(known["std"]))


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise SlimdeployError(f"--data {name} takes no {':' + argument!r}")
