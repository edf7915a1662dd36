"""Folders of images: what is read and what is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, learnable_split

from slimdeploy.toolchain.data import decoding
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, load_dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.images import fit_pixels
from slimdeploy.toolchain.preprocessing import Geometry


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
    assert (decoding.decode(tmp_path / "wide.png", Geometry(20)) == 200).all()
    assert decoding.decode(tmp_path / "wide.png", None).shape == (20, 60, 3)
    half = decoding.decode(tmp_path / "wide.png", Geometry(10))
    assert half.shape == (10, 10, 3)
    assert (half[:, 2:-2] == 200).all()


def test_shrinking_averages_instead_of_picking() -> None:
    board = np.indices((32, 32)).sum(0) % 2 * 255
    images = np.repeat(board[None, ..., None], 3, axis=-1).astype(np.uint8)
    assert abs(fit_pixels(images, Geometry(8)).astype(int) - 127).max() <= 8
    assert fit_pixels(images, Geometry(32)) is images


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
    return f"{folder}/train/green contains no images (JPEG, PNG, WEBP, BMP, PPM, TIFF, GIF, "


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
    return f"{file} is 17×16, but earlier images are 16×16: pass size N to resize all"


def _another_size_in_test(folder: Path) -> str:
    for file in (folder / "test").rglob("*.png"):
        _save(file, 24, 24)
    first = min((folder / "test" / "blue").iterdir())
    return f"{first} is 24×24, but earlier images are 16×16: pass size N to resize all"


def _not_square(folder: Path) -> str:
    for file in folder.rglob("*.png"):
        _save(file, 20, 16)
    first = min((folder / "train" / "blue").iterdir())
    return f"{first} is 20×16, not square: pass size N to resize and crop"


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
    with pytest.raises(SlimdeployError, match="folder needs a path: data folder:PATH"):
        load_dataset(DataOptions("folder"))


def test_images_of_any_size_pass_with_a_size(folder: Path) -> None:
    _save(folder / "train" / "red" / "zz.png", 40, 30)
    assert _load(folder, size=12).train.images.shape == (10, 12, 12, 3)


def _break(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.write_bytes(b"not an image")
    return files


@pytest.mark.parametrize("stream", [False, True])
def test_unreadable_images_are_all_named_and_left_out_on_request(
    folder: Path, own_cache: Path, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = len(_load(folder).train)
    broken = _break(folder, "train/red/aaa.png", "train/blue/0000.png", "test/green/zzz.jpg")
    if not stream:
        with pytest.raises(
            SlimdeployError, match=r"^3 unreadable images \(use skip_unreadable to skip them\)"
        ) as error:
            _load(folder)
        assert all(str(file) in str(error.value) for file in broken)
    for _ in range(2):
        data = load_dataset(DataOptions(f"folder:{folder}", stream=stream, skip_unreadable=True))
        assert len(data.train) == len(data.train.images) == whole - 1
        assert len(data.test) == 6
        said = capsys.readouterr().err
        assert all(f"skipped: {file}: not a readable image" in said for file in broken)
    _break(folder, *(f"test/green/{file.name}" for file in (folder / "test/green").iterdir()))
    with pytest.raises(SlimdeployError, match="no image of class 'green' is readable in test/"):
        load_dataset(DataOptions(f"folder:{folder}", stream=stream, skip_unreadable=True))


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_cached_of_files_holds_for_paths_written_another_way(
    folder: Path,
    own_cache: Path,
    stream: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (broken,) = _break(folder, "train/red/aaa.png")
    shutil.copy(folder / "train/red/0006.png", folder / "test/red/copy.png")
    counts, said = [], []
    for place, name in ((folder.parent, folder.name), (folder, f"../{folder.name}"), (folder, str(folder))):
        monkeypatch.chdir(place)
        data = load_dataset(DataOptions(f"folder:{name}", stream=stream, skip_unreadable=True))
        counts.append(len(data.train.images))
        said.append(" ".join(capsys.readouterr().err.split()))
        assert f"skipped: {name}/train/red/aaa.png" in said[-1]
        assert f"{name}/train/red/0006.png, {name}/test/red/copy.png" in said[-1]
    assert broken.exists()
    assert len(set(counts)) == 1


def test_the_same_image_in_training_and_test_is_told(
    folder: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _load(folder)
    assert "warning" not in capsys.readouterr().err
    shutil.copy(folder / "train/red/0006.png", folder / "test/red/copy.png")
    for _ in range(2):
        _load(folder)
        said = " ".join(capsys.readouterr().err.split())
        assert "the same image is in training and test" in said
        assert f"{folder}/train/red/0006.png, {folder}/test/red/copy.png" in said
