"""Find image files with their class and split: in folders of classes, or in tables of files and labels."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimdeploy.toolchain.data.tables import TABLE_ENDINGS, read_tables
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.images import HEIF_ENDINGS, endings, formats, is_hidden
from slimdeploy.toolchain.models.model_info import class_name
from slimdeploy.toolchain.progress import log

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Split -> names of its folder."""


@dataclass(frozen=True)
class Files:
    """Image files in order, class by class, and their class indices (N,) int64."""

    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, left_out: Sequence[str]) -> Files:
        """All but the files in `left_out`."""
        unwanted = set(left_out)
        kept = [i for i, path in enumerate(self.paths) if path not in unwanted]
        return Files(tuple(self.paths[i] for i in kept), self.labels[kept])


@dataclass(frozen=True)
class Listing:
    """`splits` has "train", "test", and "val" if the data has a validation split."""

    class_names: tuple[str, ...]
    splits: dict[str, Files]


def list_images(root: str) -> Listing:
    """List the images of `root`: a folder {train,val,test}/<class>/…, a folder with {train,val,test}.csv, or
    a table.

    Without a test split, the validation split is used as one. Logs skipped files. Raises
    SlimdeployError if a split or a class is missing.
    """
    path = Path(root).expanduser()
    if path.suffix.lower() in TABLE_ENDINGS or any(path.glob("train.[ct]sv")):
        found = read_tables(path)
    else:
        found = _list_folders(path)
    if "test" not in found and "val" in found:
        log(f"{path}: no test split, so its validation split is the test split")
        found["test"] = found.pop("val")
    class_names = tuple(sorted(found["train"], key=_natural))
    _check_classes(path, class_names, found)
    splits = {}
    for name in (name for name in SPLITS if name in found):
        paths = [p for label in class_names for p in found[name].get(label, ())]
        counts = [len(found[name].get(label, ())) for label in class_names]
        splits[name] = Files(tuple(paths), np.repeat(np.arange(len(class_names)), counts).astype(np.int64))
    return Listing(class_names, splits)


def _check_classes(root: Path, class_names: tuple[str, ...], found: dict[str, dict[str, list[str]]]) -> None:
    """Check that the test split has all classes and no others, and the validation split no others."""
    for name in ("test", "val"):
        if name not in found:
            continue
        odd = set(found[name]) - set(class_names)
        if name == "test":
            odd = odd or set(class_names) - set(found[name])
        if odd:
            label = min(odd)
            where = "train" if label in class_names else name
            raise SlimdeployError(
                f"{root}: class {label!r} is only in {where}/; both splits need every class"
            )
    same = collections.defaultdict(list)
    for label in class_names:
        same[label.casefold()].append(label)
    for labels in same.values():
        if len(labels) > 1:
            log(f"{root}: classes {', '.join(map(repr, labels))} differ in upper and lower case alone")


def _natural(label: str) -> tuple[int, int | str]:
    """Labels that are numbers in their order, before all others."""
    return (0, int(label)) if label.isascii() and label.isdecimal() and len(label) < 10 else (1, label)


def _list_folders(root: Path) -> dict[str, dict[str, list[str]]]:
    folders = {split: _split_folder(root, names) for split, names in SPLITS.items()}
    wanted = f"expected {root}/train/<class>/… and {root}/test/<class>/…"
    if folders["train"] is None:
        raise SlimdeployError(f"no folder {root}/train: {wanted}")
    if folders["test"] is None and folders["val"] is None:
        raise SlimdeployError(f"no folder {root}/test: {wanted}")
    left_out: collections.Counter[str] = collections.Counter()
    found = {split: _list_classes(f, left_out) for split, f in folders.items() if f is not None}
    if left_out:
        log(f"{root}: {left_out.total()} files skipped: {_counted(left_out)}")
    return found


def _split_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of a split; raises SlimdeployError if there are two."""
    present = [root / name for name in names if (root / name).is_dir()]
    if len(present) > 1:
        raise SlimdeployError(f"{present[0]} and {present[1]} are the same split: keep one of them")
    return present[0] if present else None


def _list_classes(folder: Path, left_out: collections.Counter[str]) -> dict[str, list[str]]:
    """Class name -> its image files, at any depth in its folder, in the order of torchvision's
    ImageFolder.
    """
    found: dict[str, list[str]] = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if is_hidden(entry.name):
            continue
        if not entry.is_dir():
            left_out["outside the class folders"] += 1
            continue
        name = _class_name(entry)
        if name in found:
            raise SlimdeployError(f"{folder} has two folders of class {name!r}, written differently")
        own: collections.Counter[str] = collections.Counter()
        found[name] = list(_walk(entry.path, own, set()))
        left_out.update(own)
        if not found[name]:
            beside = f"; skipped: {_counted(own)}" if own else ""
            raise SlimdeployError(
                f"{entry.path} contains no images ({', '.join(formats())}){beside}: remove the folder"
            )
    if not found:
        raise SlimdeployError(f"{folder} is empty: expected one folder for each class")
    return found


def _class_name(entry: os.DirEntry[str]) -> str:
    """The class that the folder is named after."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(entry.path).decode(errors="backslashreplace")
        raise SlimdeployError(f"{shown}: the name of a class must be UTF-8: rename the folder") from None
    return class_name(entry.name)


def _walk(folder: str, left_out: collections.Counter[str], above: set[tuple[int, int]]) -> Iterator[str]:
    """Image files of `folder` by name, then those of its subfolders. Links are followed, but not in
    cycles.
    """
    status = os.stat(folder)
    own = (status.st_dev, status.st_ino)
    if own in above:
        return
    folders = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if is_hidden(entry.name):
            continue
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.is_dir():
            folders.append(entry.path)
        elif ending in endings():
            yield entry.path
        else:
            left_out[ending or "without ending"] += 1
    for inner in folders:
        yield from _walk(inner, left_out, above | {own})


def _counted(left_out: collections.Counter[str]) -> str:
    """Such as `3 .txt, 2 .heic (pip install pillow-heif reads them)`."""
    hint = " (pip install pillow-heif reads them)"
    return ", ".join(
        f"{count} {what}{hint if what in HEIF_ENDINGS else ''}" for what, count in left_out.most_common()
    )
