"""Cache of data derived from image files: decoded images, statistics, duplicates.

An entry is complete or absent. Its name is a hash of the source files: a new, changed or removed file gives
another name. If the cache can't be written, the data is computed again each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from slimdeploy.toolchain import artifacts, locks
from slimdeploy.toolchain.data.listing import Files
from slimdeploy.toolchain.errors import SlimdeployError, shorten
from slimdeploy.toolchain.progress import log

T = TypeVar("T")
FORMAT = 4
_GRACE_S = 60
"""Age in seconds after which an unlocked partial entry counts as left by a killed process."""


def fingerprint(splits: dict[str, Files]) -> str:
    """Hash of every file's path, size, modification time and label."""
    digest = hashlib.sha256(f"{FORMAT}".encode())
    for name, files in splits.items():
        digest.update(f"\n{name}\n".encode() + files.labels.tobytes())
        for path in files.paths:
            digest.update(os.fsencode(os.path.abspath(path)) + _status(path))
    return digest.hexdigest()[:32]


def _status(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:  # a table may name missing files, which are reported when they are read
        return b":missing\n"
    return f":{status.st_size}:{status.st_mtime_ns}\n".encode()


def remembered(kind: str, name: str, find_out: Callable[[], T], read: Callable[[Any], T]) -> T:
    """The JSON document `kind`/`name` from the cache, as `read` gives it; computed and stored if missing
    or `read` can't use it.
    """
    path = artifacts.cache_folder(kind) / f"{name}.json"
    with contextlib.suppress(SlimdeployError, ValueError, TypeError, LookupError, AttributeError):
        return read(artifacts.read_json(path, kind))
    found = find_out()
    try:
        artifacts.write_json(path, found)
    except SlimdeployError as error:
        log(f"{error}: it will be computed again next time")
    return found


def side_of(entry: Path, name: str) -> int | None:
    """Side in pixels of the images `name` of a cache entry; None if there are none."""
    with contextlib.suppress(OSError, ValueError, EOFError, LookupError):
        return int(np.load(entry / f"{name}.npy", mmap_mode="r").shape[1])
    return None


def load_arrays(entry: Path, lengths: dict[str, int]) -> dict[str, np.ndarray] | None:
    """The arrays of a cache entry, of these `lengths`; None if there is none, or if it is damaged, e.g. by a
    power cut.
    """
    if not entry.is_dir():
        return None
    try:
        arrays = {name: np.load(entry / f"{name}.npy") for name in lengths}
        if wrong := [name for name, length in lengths.items() if len(arrays[name]) != length]:
            raise ValueError(f"{wrong[0]} has another length")
        return arrays
    except (FileNotFoundError, ValueError, EOFError) as error:
        log(f"the image cache {entry} is damaged ({shorten(error, 100)}): images are decoded again")
        shutil.rmtree(entry, ignore_errors=True)
        return None


def save_arrays(entry: Path, arrays: dict[str, np.ndarray]) -> None:
    """Store arrays in the cache; a failure is only logged."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(entry.parent)
        with artifacts.folder_beside(entry) as partial:
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array)
            try:
                partial.rename(entry)
            except OSError:
                if not entry.is_dir():  # else another process has stored the same
                    raise
    except OSError as error:
        reason = error.strerror or f"the disk may be full ({error})"  # numpy tells only the bytes
        log(f"cannot write the image cache {entry}: {reason}; images will be decoded again next time")


def _remove_abandoned(folder: Path) -> None:
    """Remove partial entries left by killed processes."""
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # its process has finished or removed it
            if artifacts.is_temporary(entry.name) and time.time() - entry.stat().st_mtime >= _GRACE_S:
                locks.remove_unused(Path(entry.path))
