"""The data source `folder:PATH`: the user's images, decoded once and cached, or read from their files."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data import cache
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.decoding import (
    decode_all,
    decode_as,
    find_unreadable,
    refuse,
    square_shape,
    tell_skipped,
)
from slimdeploy.toolchain.data.files import FileImages, fits_in_memory
from slimdeploy.toolchain.data.listing import Files, Listing, list_images
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Geometry
from slimdeploy.toolchain.progress import log, progress_bar

_FIRST = "train-images"


def read_folder(
    root: str, *, geometry: Geometry | None, stream: bool | None = None, skip_unreadable: bool = False
) -> tuple[tuple[str, ...], dict[str, Split], Callable[[], str]]:
    """Class names and splits of what `list_images` finds in `root`, and a function that hashes all files.

    Images are decoded to RGB, then resized and cropped by `geometry`. Without it, all must be square and of
    the same size. They are decoded at once and cached; with `stream`, or if they don't fit in memory, they
    are decoded when needed. Raises SlimdeployError for missing images, for other sizes, and for unreadable
    images unless they are skipped.
    """
    listing = list_images(root)
    name = cache.fingerprint(listing.splits)
    _tell_twins(root, listing, name)
    if skip_unreadable:
        listing = _without_unreadable(root, listing, name)
        name = cache.fingerprint(listing.splits)
    entry = _entry(name, geometry)
    if stream is None:
        count = sum(map(len, listing.splits.values()))
        stream = not fits_in_memory(count, geometry.size if geometry else _own_side(entry, listing))
    splits = _in_files(listing, geometry) if stream else _in_memory(listing, entry, geometry)

    def contents() -> str:
        return cache.remembered("contents", name, lambda: _hash_of(listing), _text)

    return listing.class_names, splits, contents


def _paths(listing: Listing) -> list[str]:
    return [path for files in listing.splits.values() for path in files.paths]


def _hash_of(listing: Listing) -> str:
    """Hash of the bytes of all files, in order. It doesn't depend on their paths and times."""
    paths = _paths(listing)
    found = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor() as pool, progress_bar("hashing images", total=len(paths)) as advance:
        for content in pool.map(_content, paths):
            found.update(content.encode())
            advance(1)
    return found.hexdigest()


def _without_unreadable(root: str, listing: Listing, name: str) -> Listing:
    """Drop the files that can't be read; raises SlimdeployError if a class loses all images of a split."""
    paths = _paths(listing)

    def find() -> dict[str, str]:
        reasons = find_unreadable(paths)
        return {str(i): reasons[path].removeprefix(path) for i, path in enumerate(paths) if path in reasons}

    # By position: another process may write the paths differently, e.g. relative to another folder.
    places = cache.remembered("unreadable", name, find, _texts_by_place)
    unreadable = {paths[int(i)]: paths[int(i)] + reason for i, reason in places.items()}
    tell_skipped(unreadable)
    splits = {split: files.without(list(unreadable)) for split, files in listing.splits.items()}
    for split in ("train", "test"):
        for label, class_name in enumerate(listing.class_names):
            if label not in splits[split].labels:
                raise SlimdeployError(f"{root}: no image of class {class_name!r} is readable in {split}/")
    return Listing(listing.class_names, splits)


def _in_memory(listing: Listing, entry: Path, geometry: Geometry | None) -> dict[str, Split]:
    """Decoded images, from the cache if possible."""
    lengths = {f"{split}-images": len(files) for split, files in listing.splits.items()}
    arrays = cache.load_arrays(entry, lengths)
    if arrays is None:
        arrays = _decode(listing, geometry)
        cache.save_arrays(entry, arrays)
    return {split: Split(arrays[f"{split}-images"], files.labels) for split, files in listing.splits.items()}


def _text(document: Any) -> str:
    if not isinstance(document, str):
        raise ValueError
    return document


def _texts_by_place(document: Any) -> dict[str, str]:
    """Position of a file -> text."""
    return {str(int(place)): str(text) for place, text in document.items()}


def _pairs(document: Any) -> list[tuple[int, int]]:
    return [(int(first), int(second)) for first, second in document]


def _decode(listing: Listing, geometry: Geometry | None) -> dict[str, np.ndarray]:
    """Images of every split; raises SlimdeployError with all unreadable files."""
    shape = _shape(listing, geometry)
    arrays: dict[str, np.ndarray] = {}
    unreadable: dict[str, str] = {}
    for split, files in listing.splits.items():
        arrays[f"{split}-images"], failed = decode_all(files.paths, shape, geometry)
        unreadable |= failed
    if unreadable:
        raise refuse(unreadable)
    return arrays


def _in_files(listing: Listing, geometry: Geometry | None) -> dict[str, Split]:
    """Images that are decoded when needed."""
    shape = _shape(listing, geometry)
    how = geometry.key if geometry else f"own {shape[0]}"
    decode = functools.partial(decode_as, shape=shape, geometry=geometry)

    def split_of(files: Files) -> Split:
        paths = np.array([os.fsencode(path) for path in files.paths])
        return Split(FileImages(paths, shape[0], decode, how), files.labels)

    return {split: split_of(files) for split, files in listing.splits.items()}


def _shape(listing: Listing, geometry: Geometry | None) -> tuple[int, ...]:
    if geometry:
        return geometry.size, geometry.size, 3
    return square_shape(listing.splits["train"].paths)


def _entry(name: str, geometry: Geometry | None) -> Path:
    """The cache entry of the decoded images. Images that have the requested size already share one entry."""
    images = artifacts.cache_folder("images")
    own = images / f"{name}-own"
    if geometry is None:
        return own
    if geometry.resize is None and cache.side_of(own, _FIRST) == geometry.size:
        return own
    return images / f"{name}-{geometry.key}"


def _own_side(entry: Path, listing: Listing) -> int:
    """Image side in pixels, from the cache if possible."""
    return cache.side_of(entry, _FIRST) or square_shape(listing.splits["train"].paths)[0]


def _tell_twins(root: str, listing: Listing, name: str) -> None:
    """Warn if the same file is in the training split and in another one: accuracy on it is meaningless."""
    paths = _paths(listing)
    twins = cache.remembered("twins", name, lambda: find_twins(listing.splits), _pairs)
    if twins:
        ours, theirs = (paths[i] for i in twins[0])
        more = f" and {len(twins) - 1} more" if len(twins) > 1 else ""
        log(f"warning: {root}: the same image is in training and test or validation: {ours}, {theirs}{more}")


def find_twins(splits: dict[str, Files]) -> list[tuple[int, int]]:
    """(training file, other file) for each file of another split whose content is in the training split, as
    positions in the files of all splits.
    """
    listed = [(split, path) for split, files in splits.items() for path in files.paths]
    sizes = {i: os.path.getsize(path) for i, (_, path) in enumerate(listed) if os.path.isfile(path)}
    ours = {i for i in sizes if listed[i][0] == "train"}
    others = sizes.keys() - ours
    alike = {sizes[i] for i in ours} & {sizes[i] for i in others}
    contents = {i: _content(listed[i][1]) for i in sorted(sizes) if sizes[i] in alike}
    hashed = {content: i for i, content in contents.items() if i in ours and content}
    return [(hashed[content], i) for i, content in contents.items() if i in others and content in hashed]


def _content(path: str) -> str:
    """Hash of a file's bytes; empty if it can't be read, which is an error where it is decoded."""
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return ""
