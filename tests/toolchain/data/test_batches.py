"""Batches: augmentation against a slow version image by image, and what an epoch promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import PREPROCESSING, random_split

from slimdeploy.toolchain.data.augmentation import Augmentation
from slimdeploy.toolchain.data.batches import Normalise, TrainingBatches, plain_batches
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.views import cut_out
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise

RAW = Preprocessing(8, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
"""Leaves the pixels as they are, so that images can be compared exactly."""


def _batches(
    split: Split, *, pad: int = 2, flip: bool = True, batch: int = 8, seed: int = 0
) -> TrainingBatches:
    augmentation = Augmentation(pad, flip)
    return TrainingBatches(split, RAW, batch_size=batch, augmentation=augmentation, device="cpu", seed=seed)


def _as_images(batch: torch.Tensor) -> np.ndarray:
    return batch.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def _slow_variants(image: np.ndarray, pad: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of the padded image, as it is and mirrored -> (row, column, mirrored)."""
    size = image.shape[0]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    variants = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            crop = padded[row : row + size, column : column + size]
            variants[crop.tobytes()] = (row, column, False)
            if flip:
                variants[crop[:, ::-1].tobytes()] = (row, column, True)
    return variants


@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_every_image_is_a_crop_of_its_own_maybe_mirrored(pad: int, flip: bool) -> None:
    split = random_split(96, classes=96, size=8)
    seen = []
    for images, labels in _batches(split, pad=pad, flip=flip).epoch(0):
        for image, label in zip(_as_images(images), labels.tolist(), strict=True):
            variants = _slow_variants(split.images[label], pad, flip)
            assert image.tobytes() in variants
            seen.append(variants[image.tobytes()])
    rows, columns, mirrored = zip(*seen, strict=True)
    assert set(rows) == set(columns) == set(range(2 * pad + 1)), "every offset comes up"
    assert set(mirrored) == ({False, True} if flip else {False})
    if pad:
        assert len({(r, c) for r, c, _ in seen}) > 2 * pad + 1, "row and column are drawn apart"
    if flip:
        assert 0.3 < sum(mirrored) / len(seen) < 0.7


@given(st.integers(2, 40), st.integers(2, 16), st.integers(0, 5), st.integers(0, 5))
def test_no_image_comes_twice_in_an_epoch(count: int, batch: int, seed: int, epoch: int) -> None:
    batches = _batches(random_split(count, classes=count, size=8), batch=batch, seed=seed)
    drawn = [labels for _, labels in batches.epoch(epoch)]
    size = min(batch, count)
    assert len(drawn) == len(batches) == count // size
    labels = torch.cat(drawn).tolist()
    assert len(set(labels)) == len(labels) == len(batches) * size


def _epoch(seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(_batches(random_split(32, classes=32, size=8), seed=seed).epoch(epoch))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_an_epoch_is_a_function_of_seed_and_index() -> None:
    torch.manual_seed(1)
    images, labels = _epoch(3, 5)
    torch.manual_seed(2)
    again = _epoch(3, 5)
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])
    for other in ((3, 6), (4, 5)):
        assert not torch.equal(labels, _epoch(*other)[1])


def test_the_epoch_before_does_not_matter() -> None:
    batches = _batches(random_split(32, classes=32, size=8))
    fresh = [labels.tolist() for _, labels in batches.epoch(1)]
    list(batches.epoch(0))
    assert [labels.tolist() for _, labels in batches.epoch(1)] == fresh


def _flipped(epoch: int, seed: int = 0, mode: str = "alternating") -> list[bool]:
    """For each image whether it is mirrored in `epoch`."""
    split = random_split(64, classes=64, size=8)
    augmentation = Augmentation(0, flip=True, flip_mode=mode)
    batches = TrainingBatches(split, RAW, batch_size=8, augmentation=augmentation, device="cpu", seed=seed)
    found = {}
    for images, labels in batches.epoch(epoch):
        for image, label in zip(_as_images(images), labels.tolist(), strict=True):
            found[label] = image.tobytes() == split.images[label, :, ::-1].tobytes()
    return [found[label] for label in range(64)]


def test_alternating_flips_show_both_sides_in_any_two_epochs() -> None:
    first = _flipped(0)
    assert 0.3 < sum(first) / 64 < 0.7
    assert _flipped(1) == [not flipped for flipped in first]
    assert _flipped(2) == first
    assert _flipped(7) == _flipped(1)
    assert _flipped(0, seed=1) != first
    drawn = _flipped(0, mode="random"), _flipped(1, mode="random")
    assert drawn[1] not in (drawn[0], [not flipped for flipped in drawn[0]])


def test_without_flip_the_mode_does_not_matter() -> None:
    split = random_split(16, classes=16, size=8)
    augmentation = Augmentation(0, flip=False, flip_mode="alternating")
    batches = TrainingBatches(split, RAW, batch_size=8, augmentation=augmentation, device="cpu", seed=0)
    for images, labels in (batch for epoch in range(2) for batch in batches.epoch(epoch)):
        np.testing.assert_array_equal(_as_images(images), split.images[labels.numpy()])


def test_cutout_by_hand() -> None:
    images = torch.ones(3, 2, 5, 5).to(memory_format=torch.channels_last)
    found = cut_out(images, 2, torch.tensor([2, 0, 4]), torch.tensor([2, 0, 1]))
    expected = torch.ones(3, 5, 5)
    expected[0, 1:3, 1:3] = 0
    expected[1, 0, 0] = 0  # the rest of the square is outside
    expected[2, 3:5, 0:2] = 0
    assert torch.equal(found, expected[:, None].expand(3, 2, 5, 5))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert images.min() == 1, "not in place"
    odd = cut_out(images, 3, torch.tensor([2] * 3), torch.tensor([3] * 3))
    assert (odd[0, 0] == 0).nonzero().tolist() == [[r, c] for r in (1, 2, 3) for c in (2, 3, 4)]


def test_cutout_takes_a_square_of_the_mean_colour_out_of_every_image() -> None:
    split = random_split(64, classes=64, size=8)
    plain, cut = (
        TrainingBatches(
            split, PREPROCESSING, batch_size=16, augmentation=augmentation, device="cpu", seed=0
        )
        for augmentation in (Augmentation(1), Augmentation(1, cutout=3))
    )  # fmt: skip
    sizes, middles = set(), set()
    for (before, labels), (after, same) in zip(plain.epoch(2), cut.epoch(2), strict=True):
        assert torch.equal(labels, same), "the other choices are the same"
        blank = (after == 0).all(1)
        assert torch.equal(torch.where(blank[:, None], 0.0, before), after)
        for image in blank:
            rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
            assert int(image.sum()) == len(rows) * len(columns), "a rectangle"
            sizes.add(int(image.sum()))
            middles.add((int(rows[0]), int(columns[0])))
    assert max(sizes) == 9
    assert sizes <= {9, 6, 4}, "over the border there is less of it"
    assert len(middles) > 15, "it is somewhere else in each image"


def test_a_cutout_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(
        SlimdeployError, match=r"^cutout must be less than the image side of 8 pixels, not 8$"
    ):
        TrainingBatches(
            random_split(8, size=8),
            RAW,
            batch_size=8,
            augmentation=Augmentation(cutout=8),
            device="cpu",
            seed=0,
        )


def test_normalising_on_the_device_is_what_the_runtimes_do() -> None:
    split = random_split(5)
    on_device = Normalise(PREPROCESSING, "cpu")(torch.from_numpy(split.images))
    assert on_device.is_contiguous(memory_format=torch.channels_last)
    assert on_device.dtype == torch.float32
    by_hand = (split.images / 255 - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
    np.testing.assert_allclose(on_device.numpy(), by_hand.transpose(0, 3, 1, 2), atol=1e-5)
    np.testing.assert_allclose(normalise(split.images, PREPROCESSING), on_device.numpy(), atol=1e-6)


def test_plain_batches_keep_order_and_the_rest() -> None:
    split = random_split(10, size=8)
    batches = list(plain_batches(split, RAW, batch_size=4, device="cpu"))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([_as_images(images) for images, _ in batches]), split.images)
    assert torch.cat([labels for _, labels in batches]).tolist() == split.labels.tolist()


def test_the_split_itself_is_not_changed() -> None:
    split = random_split(16, size=8)
    before = split.images.copy()
    for images, _ in _batches(split, pad=0, flip=False).epoch(0):
        images.zero_()
    np.testing.assert_array_equal(split.images, before)
