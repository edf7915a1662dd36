"""Which files are taken for images, of which class and split, and what is said of the others."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slimdeploy.toolchain.data.dataset import DataOptions, load_dataset
from slimdeploy.toolchain.data.listing import list_images
from slimdeploy.toolchain.errors import SlimdeployError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(root: Path, split: str) -> list[str]:
    return [os.path.relpath(path, root) for path in list_images(str(root)).splits[split].paths]


def test_folders_are_read_to_any_depth_as_torchvision_does(tmp_path: Path) -> None:
    from slimdeploy.toolchain.torchvision import import_torchvision

    root = touch(
        tmp_path, "train/b/1.jpg", "train/b/2/x.PNG", "train/b/2/a/y.webp", "train/b/10/z.bmp",
        "train/a/1.jfif", "train/b/u.gif", "train/b/v.avif", "test/a/1.tif", "test/b/3.jpeg",
    )  # fmt: skip
    found = list_images(str(root))
    assert found.class_names == ("a", "b")
    folder = import_torchvision().datasets.ImageFolder(root / "train", is_valid_file=lambda path: True)
    train = found.splits["train"]
    assert folder.samples == list(zip(train.paths, train.labels.tolist(), strict=True))


def test_what_is_left_out_is_counted_and_what_is_hidden_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = touch(
        tmp_path, "train/a/1.jpg", "train/a/notes.txt", "train/a/deep/other.txt", "train/a/README",
        "train/b/2.jpg", "train/stray.jpg", "test/a/1.jpg", "test/b/1.jpg", "train/.DS_Store",
        "train/a/.hidden.jpg",
        "train/a/__MACOSX/._1.jpg", "train/__MACOSX/a/._1.jpg", "train/.cache/x.jpg",
    )  # fmt: skip
    assert names(root, "train") == ["train/a/1.jpg", "train/b/2.jpg"]
    said = " ".join(capsys.readouterr().err.split())
    assert "4 files skipped: 2 .txt, 1 without ending, 1 outside the class folders" in said


def test_heic_files_without_their_reader_are_told_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimdeploy.toolchain.data.listing.endings", lambda: {".jpg"})
    root = touch(
        tmp_path,
        "train/a/1.jpg",
        "train/a/2.HEIC",
        "train/a/3.txt",
        "train/b/2.jpg",
        "test/a/1.jpg",
        "test/b/1.jpg",
    )
    list_images(str(root))
    assert "1 .heic (pip install pillow-heif reads them), 1 .txt" in " ".join(capsys.readouterr().err.split())


def test_heic_files_are_read_upright(tmp_path: Path) -> None:
    """As telephones write them: the file says how to turn the picture twice, in its boxes and in EXIF."""
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.register_heif_opener()
    picture = np.full((40, 64, 3), (20, 60, 220), np.uint8)
    picture[:, :32] = (200, 40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise: what is left comes to the top
    for name in ("train/a/1.HEIC", "train/b/2.heif", "test/a/3.heic", "test/b/4.hif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            Image.fromarray(picture).save(file, "HEIF", exif=exif.tobytes(), quality=90)
    found = load_dataset(DataOptions(f"folder:{tmp_path}", resize="64x40", size=40))
    image = found.train.images[0].astype(int)  # the centre of 64×40 pixels
    assert np.abs(image[:17] - (200, 40, 40)).max() < 25
    assert np.abs(image[23:] - (20, 60, 220)).max() < 25


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg")
    (root / "train/a/again").symlink_to(root / "train/a")
    assert names(root, "train") == ["train/a/1.jpg", "train/b/1.jpg"]


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_a_validation_folder_is_the_validation_split_or_the_test_split(
    tmp_path: Path, validation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{validation}/a/7.jpg", f"{validation}/b/8.jpg")
    assert set(list_images(str(root)).splits) == {"train", "test"}
    assert names(root, "test") == [f"{validation}/a/7.jpg", f"{validation}/b/8.jpg"]
    assert "no test split, so its validation split is the test split" in " ".join(
        capsys.readouterr().err.split()
    )
    touch(tmp_path, "test/a/1.jpg", "test/b/1.jpg")
    (root / validation / "a/7.jpg").unlink()
    (root / validation / "a").rmdir()  # validation needn't have every class
    assert names(root, "val") == [f"{validation}/b/8.jpg"]
    assert list_images(str(root)).splits["val"].labels.tolist() == [1]


def test_names_in_two_spellings_are_one_class(tmp_path: Path) -> None:
    name = "café"
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    root = touch(
        tmp_path, f"train/{composed}/1.jpg", "train/b/1.jpg", f"test/{decomposed}/1.jpg", "test/b/1.jpg"
    )
    assert list_images(str(root)).class_names == ("b", composed)
    touch(root, f"train/{decomposed}/2.jpg")
    with pytest.raises(SlimdeployError, match="train has two folders of class 'café', written differently"):
        list_images(str(root))


def test_a_class_must_be_utf_8_but_a_file_need_not(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg")
    touch(root, os.fsdecode(b"train/a/\xff.jpg"))
    assert len(list_images(str(root)).splits["train"]) == 3
    touch(root, os.fsdecode(b"train/\xff/1.jpg"))
    with pytest.raises(SlimdeployError, match=r"train/\\xff: the name of a class must be UTF-8: rename"):
        list_images(str(root))


def test_classes_that_differ_in_case_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = touch(tmp_path, "train/Dog/1.jpg", "train/dog/1.jpg", "test/Dog/1.jpg", "test/dog/1.jpg")
    list_images(str(root))
    said = " ".join(capsys.readouterr().err.split())
    assert "classes 'Dog', 'dog' differ in upper and lower case alone" in said


def test_a_table_with_splits_and_one_for_each_split_say_the_same(tmp_path: Path) -> None:
    one, many = touch(tmp_path / "one"), tmp_path / "many"
    one.mkdir()
    many.mkdir()
    (one / "labels.csv").write_bytes(
        b"\xef\xbb\xbfimage,Label,split\nx/1.jpg,10,train\nx/2.jpg,9,train\nx/3.jpg,10,test\nx/4.jpg,9,validation\n"
        b"x/5.jpg,9,test\n"
    )
    (many / "train.tsv").write_text("file\tclass\nx/1.jpg\t10\nx/2.jpg\t9\n")
    (many / "test.tsv").write_text("file\tclass\nx/3.jpg\t10\nx/5.jpg\t9\n")
    (many / "val.tsv").write_text("file\tclass\nx/4.jpg\t9\n")
    for source, root in ((one / "labels.csv", one), (many, many)):
        found = list_images(str(source))
        assert found.class_names == ("9", "10"), "numbers in their order"
        paths = {
            name: [os.path.relpath(p, root) for p in files.paths] for name, files in found.splits.items()
        }
        assert paths == {"train": ["x/2.jpg", "x/1.jpg"], "val": ["x/4.jpg"], "test": ["x/5.jpg", "x/3.jpg"]}


TABLES = {
    "no column 'file'": "name,label,split\na,b,train\n",
    "no column 'label'": "file,name,split\na,b,train\n",
    "no column 'split' (or set, subset); its columns are file, label": "file,label\na,b\n",
    "csv, line 2: expected a file, a label and a split (train, val or test)": "file,label,split\na,b,tset\n",
    "labels.csv, line 3: expected": "file,label,split\na,b,test\nc\n",
    "a.jpg has two labels, 'x' and 'y'": "file,label,split\na.jpg,x,train\na.jpg,y,train\n",
    "no row belongs to the train split": "file,label,split\na,b,test\n",
    "no row belongs to the test split": "file,label,split\na,b,train\n",
}


@pytest.mark.parametrize("message", TABLES)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path: Path, message: str) -> None:
    (tmp_path / "labels.csv").write_text(TABLES[message])
    with pytest.raises(SlimdeployError, match=re.escape(message)) as refused:
        list_images(str(tmp_path / "labels.csv"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00file", b'file,label,split\n"a' + b"x" * 200_000 + b'",b,train\n']
)
def test_a_table_that_is_no_text_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(SlimdeployError, match="is not a readable table"):
        list_images(str(tmp_path / "labels.csv"))
    with pytest.raises(SlimdeployError, match=r"missing\.csv is not a readable table: No such file"):
        list_images(str(tmp_path / "missing.csv"))


def test_labels_of_tables_are_normalised(tmp_path: Path, image_folder: Path) -> None:
    """é as one character and as two: one class."""
    files = sorted(image_folder.rglob("*.png"))[:6]
    labels = ["caf\u00e9", "cafe\u0301", "tea"]
    rows = [
        f"{file},{label},{split}"
        for split in ("train", "test")
        for file, label in zip(files[:3], labels, strict=True)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *dict.fromkeys(rows)]))
    assert list_images(f"{tmp_path}/labels.csv").class_names == ("caf\u00e9", "tea")


def test_tables_are_a_dataset(tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images by their folders and by a table, which names one that isn't there."""
    rows = ["file,label,split"]
    for file in sorted(image_folder.rglob("*.png")):
        split, label, _ = file.relative_to(image_folder).parts
        rows.append(f"{file},{label},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    by_table = load_dataset(DataOptions(f"folder:{tmp_path}/labels.csv"))
    by_folder = load_dataset(DataOptions(f"folder:{image_folder}"))
    assert by_table.digest() == by_folder.digest()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_dataset(DataOptions("folder:~/labels.csv")).digest() == by_folder.digest()
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "gone.png,red,train"]))
    with pytest.raises(
        SlimdeployError, match=r"gone.png: not a readable image \(.*use skip_unreadable to skip it"
    ):
        load_dataset(DataOptions(f"folder:{tmp_path}/labels.csv"))


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "JPEG2000", "TGA"])
def test_more_formats_are_read(tmp_path: Path, kind: str, save: Callable[[Path, str], None]) -> None:
    ending = {"GIF": "gif", "AVIF": "avif", "JPEG2000": "jp2", "TGA": "tga"}[kind]
    for name in ("train/a", "train/b", "test/a", "test/b"):
        save(tmp_path / name / f"1.{ending}", kind)
    assert load_dataset(DataOptions(f"folder:{tmp_path}")).train.images.shape == (2, 24, 24, 3)


@pytest.fixture
def save() -> Callable[[Path, str], None]:
    def write(path: Path, kind: str) -> None:
        path.parent.mkdir(parents=True)
        Image.new("RGB", (24, 24), "orange").save(path, kind)

    return write
