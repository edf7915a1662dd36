"""Folders of images: what is read, what is refused, and the cache of decoded images."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, learnable_split, write_image_folder

from slimdeploy.toolchain.data import decoding
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, load_dataset
from slimdeploy.toolchain.errors import SlimdeployError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that a test may change: three images of each class to train on, two to test on."""
    return write_image_folder(tmp_path / "images", train=3, test=2)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; decoded folders appear in the path returned."""
    monkeypatch.setenv("SLIMDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def _load(folder: Path, size: int | None = None) -> Dataset:
    return load_dataset(DataOptions(f"folder:{folder}", size=size))


def _save(file: Path, width: int, height: int, mode: str = "RGB") -> None:
    Image.new(mode, (width, height)).save(file)


def test_images_labels_and_preprocessing(folder: Path) -> None:
    dataset = _load(folder)
    train, test = learnable_split(3, seed=0), learnable_split(2, seed=1)
    assert dataset.class_names == CLASSES
    np.testing.assert_array_equal(dataset.train.images, train.images)
    np.testing.assert_array_equal(dataset.train.labels, train.labels)
    np.testing.assert_array_equal(dataset.test.images, test.images)
    pixels = train.images.reshape(-1, 3) / 255
    assert dataset.preprocessing.size == 16
    np.testing.assert_allclose(dataset.preprocessing.mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(dataset.preprocessing.std, pixels.std(0), atol=1e-4)


def test_a_constant_colour_has_a_deviation_to_divide_by(folder: Path) -> None:
    for file in (folder / "train").rglob("*.png"):
        _save(file, 16, 16)
    assert _load(folder).preprocessing.std == (0.001, 0.001, 0.001)


@pytest.mark.parametrize(
    ("mode", "ending"), [("L", ".png"), ("RGBA", ".png"), ("P", ".bmp"), ("CMYK", ".JPG")]
)
def test_any_colour_mode_becomes_rgb(folder: Path, mode: str, ending: str) -> None:
    _save(folder / "train" / "red" / f"zz{ending}", 16, 16, mode)
    assert _load(folder).train.images.shape == (10, 16, 16, 3)


def test_resizing_shrinks_the_shorter_side_and_cuts_the_centre(tmp_path: Path) -> None:
    image = np.zeros((20, 60, 3), dtype=np.uint8)
    image[:, 20:40] = 200  # the centre, exactly what is kept
    Image.fromarray(image).save(tmp_path / "wide.png")
    assert (decoding.decode(tmp_path / "wide.png", 20) == 200).all()
    assert decoding.decode(tmp_path / "wide.png", None).shape == (20, 60, 3)
    half = decoding.decode(tmp_path / "wide.png", 10)
    assert half.shape == (10, 10, 3)
    assert (half[:, 2:-2] == 200).all()


def test_shrinking_averages_instead_of_picking() -> None:
    board = np.indices((32, 32)).sum(0) % 2 * 255
    images = np.repeat(board[None, ..., None], 3, axis=-1).astype(np.uint8)
    assert abs(decoding.resize(images, 8).astype(int) - 127).max() <= 8
    assert decoding.resize(images, 32) is images


def _no_train(folder: Path) -> str:
    shutil.rmtree(folder / "train")
    return f"no folder {folder}/train: expected {folder}/train/<class>/… and {folder}/test/<class>/…"


def _no_classes(folder: Path) -> str:
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()
    return f"{folder}/test is empty: expected one folder for each class"


def _empty_class(folder: Path) -> str:
    for file in (folder / "train" / "green").iterdir():
        file.rename(file.with_suffix(".txt"))
    return f"{folder}/train/green holds no images (.jpg, .jpeg, .png, .bmp, .webp, .ppm, .pgm, .tif, .tiff)"


def _class_only_in_train(folder: Path) -> str:
    shutil.rmtree(folder / "test" / "green")
    return f"{folder}: class 'green' is only in train/; both splits need every class"


def _class_only_in_test(folder: Path) -> str:
    shutil.rmtree(folder / "train" / "blue")
    return f"{folder}: class 'blue' is only in test/; both splits need every class"


def _one_class(folder: Path) -> str:
    for split in ("train", "test"):
        for name in ("blue", "green"):
            shutil.rmtree(folder / split / name)
    return f"folder:{folder}: only one class (red); at least 2 are needed"


def _unreadable(folder: Path) -> str:
    file = folder / "test" / "red" / "broken.jpg"
    file.write_bytes(b"not an image at all")
    return f"{file}: not a readable image (cannot identify image file"


def _cut_short(folder: Path) -> str:
    file = sorted((folder / "train" / "red").iterdir())[0]
    file.write_bytes(file.read_bytes()[:120])
    return f"{file}: not a readable image ("


def _another_size(folder: Path) -> str:
    file = folder / "train" / "red" / "zz.png"
    _save(file, 17, 16)
    return f"{file} is 17×16, the images before it 16×16: pass --size N to resize all"


def _another_size_in_test(folder: Path) -> str:
    for file in (folder / "test").rglob("*.png"):
        _save(file, 24, 24)
    first = min((folder / "test" / "blue").iterdir())
    return f"{first} is 24×24, the images before it 16×16: pass --size N to resize all"


def _not_square(folder: Path) -> str:
    for file in folder.rglob("*.png"):
        _save(file, 20, 16)
    first = min((folder / "train" / "blue").iterdir())
    return f"{first} is 20×16, not square: pass --size N to resize and cut"


@pytest.mark.parametrize(
    "spoil",
    [_no_train, _no_classes, _empty_class, _class_only_in_train, _class_only_in_test, _one_class, _unreadable,
     _cut_short, _another_size, _another_size_in_test, _not_square],
)  # fmt: skip
def test_unusable_folders_are_refused_in_one_line(
    spoil: Callable[[Path], str], folder: Path, own_cache: Path
) -> None:
    message = spoil(folder)
    with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}") as refused:
        _load(folder)
    assert "\n" not in str(refused.value)
    if spoil is not _one_class:
        assert not own_cache.exists() or not list(own_cache.iterdir()), "nothing half-decoded may stay"


def test_a_folder_needs_a_path() -> None:
    with pytest.raises(SlimdeployError, match="folder needs a path: --data folder:PATH"):
        load_dataset(DataOptions("folder"))


def test_images_of_any_size_pass_with_a_size(folder: Path) -> None:
    _save(folder / "train" / "red" / "zz.png", 40, 30)
    assert _load(folder, size=12).train.images.shape == (10, 12, 12, 3)


def test_decoded_once_then_read_from_the_cache(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _load(folder)
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(decoding, "decode", None)  # any decoding would fail now
    again = _load(folder)
    np.testing.assert_array_equal(again.train.images, first.train.images)
    np.testing.assert_array_equal(again.test.labels, first.test.labels)
    assert again.preprocessing == first.preprocessing
    own_size = _load(folder, size=16)
    np.testing.assert_array_equal(own_size.train.images, first.train.images)
    assert len(list(own_cache.iterdir())) == 1, "images of the size asked for are not kept twice"


def test_every_size_has_its_own_cache(folder: Path, own_cache: Path) -> None:
    assert _load(folder).train.images.shape[1] == 16
    assert _load(folder, size=8).train.images.shape[1] == 8
    assert _load(folder).train.images.shape[1] == 16
    assert len(list(own_cache.iterdir())) == 2


def _replace(folder: Path) -> None:
    _save(folder / "train" / "red" / "0006.png", 16, 16)


def _touch(folder: Path) -> None:
    os.utime(folder / "train" / "red" / "0006.png", ns=(1, 1))


def _add(folder: Path) -> None:
    _save(folder / "test" / "red" / "zz.png", 16, 16)


def _remove(folder: Path) -> None:
    (folder / "test" / "red" / "0004.png").unlink()


def _rename(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "red").rename(folder / split / "crimson")


@pytest.mark.parametrize("change", [_replace, _touch, _add, _remove, _rename])
def test_a_changed_folder_is_decoded_anew(
    change: Callable[[Path], None], folder: Path, own_cache: Path
) -> None:
    _load(folder)
    change(folder)
    dataset = _load(folder)
    assert len(list(own_cache.iterdir())) == 2
    assert len(dataset.train) == 9
    assert len(dataset.test) == len(list((folder / "test").rglob("*.png")))


def test_an_interrupted_decoding_leaves_no_cache(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = decoding.decode, []

    def interrupted(file: Path, size: int | None) -> np.ndarray:
        calls.append(file)
        if len(calls) > 10:  # in the middle of the test split, the training split is written by then
            raise KeyboardInterrupt
        return decode(file, size)

    monkeypatch.setattr(decoding, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _load(folder)
    assert not list(own_cache.iterdir())
    monkeypatch.setattr(decoding, "decode", decode)
    assert len(_load(folder).test) == 6


def test_a_cache_that_another_process_filled_first_is_used(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        shutil.copytree(self, target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    assert len(_load(folder).train) == 9
    assert len(list(own_cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(folder: Path, own_cache: Path) -> None:
    own_cache.parent.write_text("a file where the folder should be")
    with pytest.raises(SlimdeployError, match=f"cannot write the image cache {re.escape(str(own_cache))}"):
        _load(folder)
