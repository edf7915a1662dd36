"""Splitting off validation, and balanced subsets: for any labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slimdeploy.toolchain.data.dataset import (
    SOURCES,
    DataOptions,
    Dataset,
    Split,
    balanced_subset,
    load_dataset,
    split_validation,
)
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing

label_lists = st.lists(st.integers(0, 5), min_size=2, max_size=80)


def _numbered(labels: list[int]) -> Split:
    """Image i holds i in its first pixel, so that images can be told apart."""
    images = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return Split(images, np.array(labels, dtype=np.int64))


def _numbers(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


@given(label_lists, st.floats(0.01, 0.99), st.integers(0, 3))
@example([0] * 6 + [1], 0.5, 0)  # the only image of a class stays: another class gives its share
def test_validation_is_a_share_of_the_whole_and_of_every_class(
    labels: list[int], fraction: float, seed: int
) -> None:
    split = _numbered(labels)
    counts = np.bincount(labels)
    room = np.maximum(counts - 1, 0)  # one image of every class stays
    wanted = round(len(labels) * fraction)
    if min(wanted, room.sum()) == 0:
        with pytest.raises(SlimdeployError, match="both need at least 1"):
            split_validation(split, fraction, seed=seed)
        return
    training, validation = split_validation(split, fraction, seed=seed)
    assert sorted(_numbers(training) + _numbers(validation)) == list(range(len(labels))), "each image once"
    for part in (training, validation):
        assert [labels[i] for i in _numbers(part)] == part.labels.tolist(), "images keep their labels"
    taken = np.bincount(validation.labels, minlength=len(counts))
    assert (np.abs(taken - np.minimum(counts * fraction, room)) <= 1).all()
    assert len(validation) == wanted or (
        len(validation) < wanted and (taken == room)[counts * fraction > room].all()
    )
    again = split_validation(split, fraction, seed=seed)
    assert _numbers(again[1]) == _numbers(validation)


def test_small_classes_have_validation_images_too() -> None:
    """By classes alone, a tenth of 5 images would be none."""
    split = Split(np.zeros((5000, 1, 1, 3), np.uint8), np.repeat(np.arange(1000), 5))
    training, validation = split_validation(split, 0.1)
    assert (len(training), len(validation)) == (4500, 500)
    assert np.bincount(validation.labels).max() == 1
    mixed = Split(np.zeros((110, 1, 1, 3), np.uint8), np.repeat([0, 1, 2], [100, 5, 5]))
    shares = np.bincount(split_validation(mixed, 0.1)[1].labels, minlength=3)
    assert sorted(shares) == [0, 1, 10]


def test_validation_images_of_the_datas_own_are_taken() -> None:
    train, test, own = (_numbered([0, 1] * n) for n in (8, 2, 3))
    preprocessing = Preprocessing(1, (0.0,) * 3, (1.0,) * 3)
    dataset = Dataset(("a", "b"), train, test, preprocessing, own)
    assert dataset.held_out(0.25) == (train, own)
    assert len(dataset.held_out(0.25, limit=6)[0]) == 6
    held = Dataset(("a", "b"), train, test, preprocessing).held_out(0.25, limit=8)
    assert [len(part) for part in held] == [6, 2]


def test_another_seed_splits_otherwise() -> None:
    split = _numbered([0] * 50)
    assert _numbers(split_validation(split, 0.5, seed=0)[1]) != _numbers(
        split_validation(split, 0.5, seed=1)[1]
    )


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(
        SlimdeployError, match=r"a validation share of 0\.1 leaves 4 images for training and 0 for"
    ):
        split_validation(_numbered([0, 0, 1, 1]), 0.1)


@given(label_lists, st.integers(1, 80))
def test_a_balanced_subset_is_as_even_as_it_goes(labels: list[int], limit: int) -> None:
    split = _numbered(labels)
    subset = balanced_subset(split, limit)
    numbers = _numbers(subset)
    assert len(numbers) == len(set(numbers)) == min(limit, len(labels))
    assert [labels[i] for i in numbers] == subset.labels.tolist()
    available, taken = np.bincount(labels, minlength=6), np.bincount(subset.labels, minlength=6)
    # A class gives less than another only where it is used up, or by one.
    for a in range(6):
        assert taken[a] == available[a] or taken[a] >= taken.max() - 1
    assert numbers == _numbers(balanced_subset(split, limit))


def test_no_limit_is_the_whole_split() -> None:
    split = _numbered([0, 1, 2])
    assert balanced_subset(split, None) is split


def test_an_unknown_source_suggests_the_nearest() -> None:
    with pytest.raises(
        SlimdeployError, match=r"unknown data 'cifar1O'; known: .*\. Did you mean 'cifar10'\?"
    ):
        load_dataset(DataOptions("cifar1O"))


def test_a_folder_without_its_prefix_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SlimdeployError, match=f"data {tmp_path} is a folder: write folder:{tmp_path}"):
        load_dataset(DataOptions(str(tmp_path)))


def test_another_source_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    def stripes(argument: str, options: DataOptions) -> Dataset:
        names = tuple(argument.split(","))
        split = _numbered(list(range(len(names))))
        return Dataset(names, split, split, Preprocessing(1, (0.0,) * 3, (1.0,) * 3))

    monkeypatch.setitem(SOURCES, "stripes", stripes)
    assert load_dataset(DataOptions("stripes:wide,narrow")).class_names == ("wide", "narrow")
    with pytest.raises(
        SlimdeployError, match=r"stripes:wide: only one class \(wide\); at least 2 are needed"
    ):
        load_dataset(DataOptions("stripes:wide"))


@pytest.mark.parametrize(
    ("stored", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.arange(2), r"^stored must be images .* float32$"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.arange(2), r"^stored must be images .* \(2, 3, 4, 4\) uint8$"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.arange(3), r"^labels must be integers \(2,\), one for each"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), r"^labels must be integers \(2,\), one for each"),
    ],
)
def test_a_split_of_other_arrays_is_refused(stored: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(SlimdeployError, match=message):
        Split(stored, labels)


def test_a_dataset_needs_images_and_known_labels() -> None:
    good, preprocessing = _numbered([0, 1]), Preprocessing(1, (0.0,) * 3, (1.0,) * 3)
    assert Split(good.stored, good.labels.astype(np.int32)).labels.dtype == np.int64
    for test, message in (
        (good.take(np.arange(0)), "^test contains no images$"),
        (_numbered([0, 2]), "^test contains the label 2, but there are 2 class_names$"),
        (_numbered([0, -100]), "^test contains the label -100, but"),
    ):
        with pytest.raises(SlimdeployError, match=message):
            Dataset(("a", "b"), good, test, preprocessing)
