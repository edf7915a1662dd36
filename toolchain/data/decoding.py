"""Image files to uint8 arrays: decoded once, then kept in a cache keyed by the files themselves."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.errors import SlimdeployError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
CACHE_FORMAT = 2
_CHUNK = 256


def read_folder(root: str, *, size: int | None) -> tuple[tuple[str, ...], Split, Split]:
    """Class names, training and test split of `root/{train,test}/<class>/<image>`.

    Images are decoded to RGB; with `size` the shorter side is resized to it (antialiased) and the centre is
    cut out. Without, all images must be square and of one size. Raises SlimdeployError for what is missing,
    unreadable, of another size, or where the classes of the two splits differ.
    """
    folder = Path(root)
    files = {name: _list_images(folder, name) for name in ("train", "test")}
    class_names = tuple(sorted(files["train"]))
    if odd := sorted(set(files["train"]) ^ set(files["test"])):
        where = "train" if odd[0] in files["train"] else "test"
        raise SlimdeployError(f"{folder}: class {odd[0]!r} is only in {where}/; both splits need every class")
    cache = _cache_folder(files, size)
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
    own = _cache_root() / f"{fingerprint}-own"
    if size is None or (own.is_dir() and np.load(own / "train-images.npy", mmap_mode="r").shape[1] == size):
        return own
    return _cache_root() / f"{fingerprint}-{size}"


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


def _cache_root() -> Path:
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
    expected: tuple[int, ...] | None = None
    for split, classes in files.items():
        paths = [entry.path for name in class_names for entry in classes[name]]
        labels = np.repeat(np.arange(len(class_names)), [len(classes[name]) for name in class_names])
        images, expected = _decode_all(paths, size, expected)
        np.save(folder / f"{split}-images.npy", images)
        np.save(folder / f"{split}-labels.npy", labels.astype(np.int64))


def _decode_all(
    paths: list[str], size: int | None, expected: tuple[int, ...] | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Decode `paths` into one (N, S, S, 3) array; returns it with the shape that every image has."""
    from slimdeploy.toolchain.progress import progress_bar

    shape = expected or decode(paths[0], size).shape
    if shape[0] != shape[1]:
        raise SlimdeployError(
            f"{paths[0]} is {shape[1]}×{shape[0]}, not square: pass --size N to resize and cut"
        )
    images = np.empty((len(paths), *shape), dtype=np.uint8)

    def decode_chunk(start: int) -> int:
        for i in range(start, min(start + _CHUNK, len(paths))):
            image = decode(paths[i], size)
            if image.shape != shape:
                raise SlimdeployError(
                    f"{paths[i]} is {image.shape[1]}×{image.shape[0]}, the images before it "
                    f"{shape[1]}×{shape[0]}: pass --size N to resize all"
                )
            images[i] = image
        return min(_CHUNK, len(paths) - start)

    starts = range(0, len(paths), _CHUNK)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar("decoding images", total=len(paths)) as advance,
    ):
        for count in pool.map(decode_chunk, starts):
            advance(count)
    return images, shape
