"""The cache of decoded images: used again, renewed, complete or absent, shared by processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import learnable_split

from slimdeploy.toolchain.data import decoding
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, load_dataset
from slimdeploy.toolchain.preprocessing import Geometry


def _load(folder: Path, size: int | None = None) -> Dataset:
    return load_dataset(DataOptions(f"folder:{folder}", size=size))


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


@pytest.mark.parametrize("left", [0, 60, -100])
@pytest.mark.parametrize("size", [None, 8])
def test_a_damaged_entry_is_made_again(folder: Path, own_cache: Path, left: int, size: int | None) -> None:
    """As a power cut leaves it: empty, or cut off."""
    first = _load(folder, size)
    for _ in range(2):
        (entry,) = own_cache.iterdir()
        images = entry / "train-images.npy"
        whole = images.read_bytes()
        images.write_bytes(whole[:left])
        np.testing.assert_array_equal(_load(folder, size).train.images, first.train.images)
        assert images.read_bytes() == whole


@pytest.mark.parametrize("document", ["[]", "5", "[[null]]", "[[1, 2, 3], [4, 5, 6]]", '{"a": 1}'])
def test_a_damaged_document_is_made_again(folder: Path, own_cache: Path, document: str) -> None:
    def found() -> Dataset:
        return load_dataset(DataOptions(f"folder:{folder}", stream=True))

    first = found().preprocessing
    paths = list(own_cache.parent.glob("*/*.json"))
    assert {path.parent.name for path in paths} == {"statistics", "twins"}
    for path in paths:
        path.write_text(document)
    assert found().preprocessing == first


def test_every_size_has_its_own_cache(folder: Path, own_cache: Path) -> None:
    assert _load(folder).train.images.shape[1] == 16
    assert _load(folder, size=8).train.images.shape[1] == 8
    assert _load(folder).train.images.shape[1] == 16
    assert len(list(own_cache.iterdir())) == 2


def _replace(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "train" / "red" / "0006.png")


def _touch(folder: Path) -> None:
    os.utime(folder / "train" / "red" / "0006.png", ns=(1, 1))


def _add(folder: Path) -> None:
    Image.new("RGB", (16, 16)).save(folder / "test" / "red" / "zz.png")


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

    def interrupted(file: Path, geometry: Geometry | None) -> np.ndarray:
        calls.append(file)
        if len(calls) > 10:  # in the middle of the test split
            raise KeyboardInterrupt
        return decode(file, geometry)

    monkeypatch.setattr(decoding, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _load(folder)
    assert not own_cache.exists()
    monkeypatch.setattr(decoding, "decode", decode)
    assert len(_load(folder).test) == 6


def test_an_entry_that_cannot_be_finished_leaves_nothing(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a full disk, where numpy's error has no strerror."""

    def full(file: Path, array: np.ndarray) -> None:
        file.write_bytes(b"begun")
        raise OSError("147456 requested and 4096 written")

    monkeypatch.setattr(np, "save", full)
    assert len(_load(folder).train) == 9
    assert not list(own_cache.iterdir())
    assert (
        ": the disk may be full (147456 requested and 4096 written); images will be decoded again"
        in capsys.readouterr().err
    )


def test_what_a_killed_process_left_is_removed_but_not_what_is_being_written(
    folder: Path, own_cache: Path
) -> None:
    abandoned, fresh, held = (own_cache / f".{name}.tmp" for name in ("a", "b", "c"))
    for entry in (abandoned, fresh, held):
        entry.mkdir(parents=True)
        (entry / "train-images.npy").write_bytes(b"half")
    for entry in (abandoned, held):
        os.utime(entry, (1, 1))
    with open_locked(held):
        _load(folder)
    left = {entry.name for entry in own_cache.iterdir()}
    assert abandoned.name not in left
    assert {fresh.name, held.name} < left


@contextlib.contextmanager
def open_locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def test_others_may_read_a_shared_cache(folder: Path, own_cache: Path) -> None:
    before = os.umask(0o022)
    try:
        _load(folder)
    finally:
        os.umask(before)
    (entry,) = own_cache.iterdir()
    assert entry.stat().st_mode & 0o777 == 0o755


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


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_cache_that_can_be_written_the_images_are_read_all_the_same(
    folder: Path, own_cache: Path, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    own_cache.parent.write_text("a file where the folder should be")
    dataset = load_dataset(DataOptions(f"folder:{folder}", stream=stream))
    np.testing.assert_array_equal(dataset.train.images, learnable_split(3, seed=0).images)
    assert "Not a directory" in capsys.readouterr().err
