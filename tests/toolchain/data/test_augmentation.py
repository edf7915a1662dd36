"""Random resized crops, colours and mixing: against torchvision, by hand, and what an epoch promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import PREPROCESSING, random_split

from slimdeploy.toolchain.data.augmentation import Augmentation
from slimdeploy.toolchain.data.batches import TrainingBatches
from slimdeploy.toolchain.data.mixing import Mix, draw_mixes
from slimdeploy.toolchain.data.views import draw_views, jittered, resized_crops
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.torchvision import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

RAW = Preprocessing(16, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


def _images(count: int, side: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8))


def _views(augmentation: Augmentation, count: int = 2000, side: int = 32, seed: int = 0):
    return draw_views(
        augmentation, count, side, generator=torch.Generator().manual_seed(seed),
        draw_flips=lambda generator: torch.zeros(count, dtype=torch.bool),
    )  # fmt: skip


def test_resized_crops_are_torchvisions_to_one_level() -> None:
    images, views = _images(40, 32), _views(Augmentation(resized_crop=0.1), 40)
    flips = torch.arange(40) % 2 == 0
    found = resized_crops(images, views.boxes, flips)
    for image, mine, box, flip in zip(images, found, views.boxes.T.tolist(), flips, strict=True):
        theirs = v2.functional.resized_crop(image.permute(2, 0, 1), *box, [32, 32], antialias=True)
        theirs = v2.functional.horizontal_flip(theirs) if flip else theirs
        assert (theirs.permute(1, 2, 0).int() - mine.int()).abs().max() <= 1
    whole = torch.tensor([[0], [0], [32], [32]]).expand(4, 40)
    assert torch.equal(resized_crops(images, whole, torch.zeros(40, dtype=torch.bool)), images)


def test_crops_have_the_areas_and_ratios_of_torchvisions() -> None:
    """The distribution: quantiles of 4,000 of each."""
    _, _, height, width = _views(Augmentation(resized_crop=0.2), 4000, 224).boxes.double()
    image = torch.zeros(3, 224, 224)
    transform = v2.RandomResizedCrop(224, scale=(0.2, 1.0))
    torch.manual_seed(0)
    drawn = [transform.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p["height"], p["width"]] for p in drawn])
    steps = np.linspace(0.05, 0.95, 10)
    for mine, other, within in (
        (height * width / 224**2, theirs.prod(1) / 224**2, 0.03),
        (width / height, theirs[:, 1] / theirs[:, 0], 0.03),
    ):
        np.testing.assert_allclose(np.quantile(mine, steps), np.quantile(other, steps), atol=within)


def test_crops_lie_inside_and_everywhere() -> None:
    top, left, height, width = _views(Augmentation(resized_crop=0.08)).boxes
    assert (top + height).max() == (left + width).max() == 32
    assert top.min() == left.min() == 0
    assert min(height.min(), width.min()) >= 1
    assert (height * width / 32**2).min() > 0.06


def test_colours_are_torchvisions_to_one_level() -> None:
    images, colours = _images(30, 9), _views(Augmentation(0, color_jitter=0.8), 30).colours
    found = jittered(images, colours)
    for image, mine, factors in zip(images, found, colours.T.tolist(), strict=True):
        theirs, adjust = image.permute(2, 0, 1), v2.functional
        for change, factor in zip(
            (adjust.adjust_brightness, adjust.adjust_contrast, adjust.adjust_saturation), factors, strict=True
        ):
            theirs = change(theirs, factor)
        assert (theirs.permute(1, 2, 0).int() - mine.int()).abs().max() <= 1
    assert 0.2 <= colours.min() < 0.3
    assert 1.7 < colours.max() <= 1.8
    assert torch.equal(jittered(images, torch.ones(3, 30)), images)


def test_mixing_by_hand() -> None:
    own, others = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    labels, theirs = torch.tensor([0, 2]), torch.tensor([2, 2])
    assert (Mix(0.75).images(own, others) == 0.25).all()
    assert Mix(0.75).labels(labels, theirs, 3).tolist() == [[0.75, 0, 0.25], [0, 0, 1]]
    cut = Mix(0.875, (slice(0, 1), slice(2, 4))).images(own, others)
    assert cut[0, 0].tolist() == [[0, 0, 1, 1], [0] * 4, [0] * 4, [0] * 4]
    assert own.max() == 0


def test_shares_are_those_of_the_distributions() -> None:
    mixes = draw_mixes(0.0, 1.0, 2000, 32, seed=(0, 0))
    for mix in mixes:
        rows, columns = mix.box
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        assert mix.share == pytest.approx(1 - area / 32**2)
        assert 0 <= rows.start <= rows.stop <= 32
    blended = draw_mixes(0.2, 0.0, 2000, 32, seed=(0, 0))
    assert all(mix.box is None for mix in blended)
    shares = [mix.share for mix in blended]
    assert np.std(shares) == pytest.approx(0.423, abs=0.02)  # of Beta(α, α): 1 / √(4 (2 α + 1))
    either = draw_mixes(0.2, 1.0, 2000, 32, seed=(0, 1))
    assert 0.45 < np.mean([mix.box is None for mix in either]) < 0.55
    assert draw_mixes(0.2, 1.0, 5, 32, seed=(0, 1)) == either[:5]


def _epoch(augmentation: Augmentation, rank: int = 0, ranks: int = 1, epoch: int = 2):
    batches = TrainingBatches(
        random_split(40, classes=4, size=16), RAW, batch_size=12, augmentation=augmentation, classes=4,
        device="cpu", seed=5, rank=rank, ranks=ranks,
    )  # fmt: skip
    return list(batches.epoch(epoch))


MIXED = Augmentation(2, color_jitter=0.3, mixup=0.4, cutmix=1.0, cutout=4)


@pytest.mark.parametrize("augmentation", [MIXED, Augmentation(resized_crop=0.2)])
def test_processes_share_the_batches_that_one_would_see(augmentation: Augmentation) -> None:
    alone = _epoch(augmentation)
    shares = [_epoch(augmentation, rank, 3) for rank in range(3)]
    assert len(alone) == 3
    for number, (images, labels) in enumerate(alone):
        assert images.is_contiguous(memory_format=torch.channels_last)
        for rank in range(3):
            mine, own_labels = shares[rank][number]
            assert torch.equal(mine, images[rank::3])
            assert torch.equal(own_labels, labels[rank::3])


def test_an_epoch_is_a_function_of_seed_and_index() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = _epoch(MIXED)
    torch.manual_seed(2)
    np.random.seed(2)
    for (images, labels), (again, same) in zip(first, _epoch(MIXED), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
        assert labels.shape == (12, 4)
        torch.testing.assert_close(labels.sum(1), torch.ones(12))
    assert not torch.equal(first[0][0], _epoch(MIXED, epoch=3)[0][0])


def test_mixed_images_are_shares_of_an_image_and_the_one_before() -> None:
    plain = Augmentation(0, flip=False)
    mixed = Augmentation(0, flip=False, mixup=1.0)
    mixes = draw_mixes(1.0, 0.0, 3, 16, seed=(5, 2))
    for mix, (images, labels), (blended, shares) in zip(mixes, _epoch(plain), _epoch(mixed), strict=True):
        torch.testing.assert_close(blended, mix.share * images + (1 - mix.share) * images.roll(1, 0))
        hard = F.one_hot(labels, 4).float()
        torch.testing.assert_close(shares, mix.share * hard + (1 - mix.share) * hard.roll(1, 0))
        # Its loss, smoothed too, is both labels' loss in the same shares.
        logits = torch.randn(12, 4)
        loss, first, second = (
            F.cross_entropy(logits, target, label_smoothing=0.1)
            for target in (shares, labels, labels.roll(1))
        )
        torch.testing.assert_close(loss, mix.share * first + (1 - mix.share) * second)


def test_normalised_with_the_networks_own_figures() -> None:
    split = random_split(12, size=16)
    (images, _), *_ = TrainingBatches(
        split, PREPROCESSING, batch_size=12, augmentation=Augmentation(resized_crop=1.0), device="cpu", seed=0
    ).epoch(0)
    assert images.shape == (12, 3, 16, 16)
    assert images.dtype == torch.float32
