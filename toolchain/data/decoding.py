"""Image files to uint8 arrays: decoded once, then kept in a cache keyed by the files themselves."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.files import FileImages, fits_in_memory
from slimdeploy.toolchain.errors import SlimdeployError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
CACHE_FORMAT = 2
_CHUNK = 256


def read_folder(
    root: str, *, size: int | None, stream: bool | None = None
) -> tuple[tuple[str, ...], Split, Split]:
    """Class names, training and test split of `root/{train,test}/<class>/<image>`.

    Images are decoded to RGB; with `size` the shorter side is resized to it (antialiased) and the centre is
    cut out. Without, all images must be square and of one size. They are decoded at once and cached or, with
    `stream` or where they don't fit in memory, when they are needed. Raises SlimdeployError for what is
    missing, unreadable, of another size, or where the classes of the two splits differ.
    """
    folder = Path(root)
    files = {name: _list_images(folder, name) for name in ("train", "test")}
    class_names = tuple(sorted(files["train"]))
    if odd := sorted(set(files["train"]) ^ set(files["test"])):
        where = "train" if odd[0] in files["train"] else "test"
        raise SlimdeployError(f"{folder}: class {odd[0]!r} is only in {where}/; both splits need every class")
    first = files["train"][class_names[0]][0].path
    count = sum(len(entries) for classes in files.values() for entries in classes.values())
    cache = _cache_folder(files, size)
    if stream is None:
        stream = not fits_in_memory(count, size or _side(cache, first))
    if stream:
        decode_one = functools.partial(decode_as, shape=_square(first, size), size=size)
        train, test = (_in_files(classes, class_names, decode_one) for classes in files.values())
        return class_names, train, test
    if not cache.is_dir():
        _fill_cache(cache, files, class_names, size)
    splits = [Split(np.load(cache / f"{n}-images.npy"), np.load(cache / f"{n}-labels.npy")) for n in files]
    return class_names, splits[0], splits[1]


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """(N, H, W, 3) uint8 → (N, size, size, 3) uint8: bilinear, antialiased when shrinking, centre cut out."""
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([_fit(Image.fromarray(image), size) for image in images])


def decode(file: Path | str, size: int | None) -> np.ndarray:
    """One image file as (H, W, 3) uint8; raises SlimdeployError where it can't be read."""
    try:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError, SyntaxError) as error:
        raise SlimdeployError(f"{file}: not a readable image ({error})") from error
    return np.asarray(rgb) if size is None else _fit(rgb, size)


def _fit(image: Image.Image, size: int) -> np.ndarray:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def decode_as(file: str, *, shape: tuple[int, ...], size: int | None) -> np.ndarray:
    """One image file as an array of `shape`, like those before it; raises SlimdeployError where it isn't."""
    image = decode(file, size)
    if image.shape != shape:
        raise SlimdeployError(
            f"{file} is {image.shape[1]}×{image.shape[0]}, the images before it "
            f"{shape[1]}×{shape[0]}: pass --size N to resize all"
        )
    return image


def _side(cache: Path, first: str) -> int:
    """Pixels along a side of the images, from the cache where there is one."""
    if cache.is_dir():
        return int(np.load(cache / "train-images.npy", mmap_mode="r").shape[1])
    return decode(first, None).shape[0]


def _square(first: str, size: int | None) -> tuple[int, ...]:
    """The shape of all images, which is that of the first."""
    shape = decode(first, size).shape
    if shape[0] != shape[1]:
        raise SlimdeployError(
            f"{first} is {shape[1]}×{shape[0]}, not square: pass --size N to resize and cut"
        )
    return shape


def _in_files(
    classes: dict[str, list[os.DirEntry[str]]], class_names: Sequence[str], decode_one: functools.partial[Any]
) -> Split:
    """A split whose images are decoded when they are looked at."""
    paths, labels = _in_order(classes, class_names)
    files = np.array([os.fsencode(path) for path in paths])
    return Split(FileImages(files, decode_one.keywords["shape"][0], decode_one), labels)


def _in_order(
    classes: dict[str, list[os.DirEntry[str]]], class_names: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """Paths of a split class by class, and their labels (N,) int64."""
    paths = [entry.path for name in class_names for entry in classes[name]]
    labels = np.repeat(np.arange(len(class_names)), [len(classes[name]) for name in class_names])
    return paths, labels.astype(np.int64)


def _list_images(folder: Path, split: str) -> dict[str, list[os.DirEntry[str]]]:
    """Class name -> its image files by name, for one split."""
    root = folder / split
    if not root.is_dir():
        raise SlimdeployError(
            f"no folder {root}: expected {folder}/train/<class>/… and {folder}/test/<class>/…"
        )
    classes = sorted(
        (e for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name
    )
    found = {}
    for entry in classes:
        images = [e for e in os.scandir(entry.path) if e.name.lower().endswith(ENDINGS)]
        if not images:
            raise SlimdeployError(f"{entry.path} holds no images ({', '.join(ENDINGS)})")
        found[entry.name] = sorted(images, key=lambda e: e.name)
    if not found:
        raise SlimdeployError(f"{root} is empty: expected one folder for each class")
    return found


def _cache_folder(files: dict[str, dict[str, list[os.DirEntry[str]]]], size: int | None) -> Path:
    """Where the decoded images of `files` are kept. Images that have the `size` asked for by themselves are
    not kept twice.
    """
    fingerprint = _fingerprint(files)
    own = cache_root() / f"{fingerprint}-own"
    if size is None or (own.is_dir() and np.load(own / "train-images.npy", mmap_mode="r").shape[1] == size):
        return own
    return cache_root() / f"{fingerprint}-{size}"


def _fingerprint(files: dict[str, dict[str, list[os.DirEntry[str]]]]) -> str:
    """Hash over every file's path, length and time of change: a new, changed or removed file gives another
    one.
    """
    digest = hashlib.sha256(f"{CACHE_FORMAT}".encode())
    for classes in files.values():
        for entries in classes.values():
            digest.update(f"\n{os.path.abspath(os.path.dirname(entries[0].path))}\n".encode())
            for entry in entries:
                status = entry.stat()
                digest.update(f"{entry.name}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def cache_root() -> Path:
    """Where decoded images are kept."""
    return Path(os.environ.get("SLIMDEPLOY_CACHE") or Path.home() / ".cache" / "slimdeploy") / "images"


def _fill_cache(
    cache: Path,
    files: dict[str, dict[str, list[os.DirEntry[str]]]],
    class_names: Sequence[str],
    size: int | None,
) -> None:
    """Decode everything into a temporary folder and rename it into place: the cache is whole or absent."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=cache.parent, prefix=".decoding-"))
        try:
            _decode_into(temporary, files, class_names, size)
            temporary.rename(cache)
        except OSError:
            if not cache.is_dir():  # another process filled it in the meantime: then use that
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise SlimdeployError(f"cannot write the image cache {cache}: {error.strerror}") from error


def _decode_into(
    folder: Path,
    files: dict[str, dict[str, list[os.DirEntry[str]]]],
    class_names: Sequence[str],
    size: int | None,
) -> None:
    shape = _square(files["train"][class_names[0]][0].path, size)
    for split, classes in files.items():
        paths, labels = _in_order(classes, class_names)
        np.save(folder / f"{split}-images.npy", _decode_all(paths, shape, size))
        np.save(folder / f"{split}-labels.npy", labels)


def _decode_all(paths: list[str], shape: tuple[int, ...], size: int | None) -> np.ndarray:
    """Decode `paths` into one (N, S, S, 3) array."""
    from slimdeploy.toolchain.progress import progress_bar

    images = np.empty((len(paths), *shape), dtype=np.uint8)

    def decode_chunk(start: int) -> int:
        for i in range(start, min(start + _CHUNK, len(paths))):
            images[i] = decode_as(paths[i], shape=shape, size=size)
        return min(_CHUNK, len(paths) - start)

    starts = range(0, len(paths), _CHUNK)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar("decoding images", total=len(paths)) as advance,
    ):
        for count in pool.map(decode_chunk, starts):
            advance(count)
    return images
