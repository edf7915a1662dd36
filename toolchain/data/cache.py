"""What was found out about image files, kept for the next command: decoded images, statistics, twins.

Every entry is whole or absent, and named after the files it was made of: a new, changed or removed file gives
another name. Where nothing can be written, the work is done again each time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.listing import Files
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.progress import log

FORMAT = 4
_PARTIAL = ".decoding-"
_GRACE_S = 60
"""Age from which on a partial entry that nobody holds is taken for a killed process's."""


def root() -> Path:
    """Where everything is kept."""
    return Path(os.environ.get("SLIMDEPLOY_CACHE") or Path.home() / ".cache" / "slimdeploy")


def fingerprint(splits: dict[str, Files]) -> str:
    """Hash over every file's path, length, time of change and label."""
    digest = hashlib.sha256(f"{FORMAT}".encode())
    for name, files in splits.items():
        digest.update(f"\n{name}\n".encode() + files.labels.tobytes())
        for path in files.paths:
            digest.update(os.fsencode(os.path.abspath(path)) + _status(path))
    return digest.hexdigest()[:32]


def _status(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:  # a table may name files that aren't there: they are told when they are read
        return b":missing\n"
    return f":{status.st_size}:{status.st_mtime_ns}\n".encode()


def remembered(kind: str, name: str, find_out: Callable[[], Any]) -> Any:
    """The JSON document `kind`/`name`, found out and kept where it isn't there yet."""
    path = root() / kind / f"{name}.json"
    with contextlib.suppress(SlimdeployError):
        return artifacts.read_json(path, kind)
    found = find_out()
    try:
        artifacts.write_json(path, found)
    except SlimdeployError as error:
        log(f"{error}: it will be found out again next time")
    return found


def load_arrays(entry: Path, names: list[str]) -> dict[str, np.ndarray] | None:
    """The arrays of a cache entry; None where there is none."""
    if not entry.is_dir():
        return None
    return {name: np.load(entry / f"{name}.npy") for name in names}


def save_arrays(entry: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keep arrays; where they can't be kept, that is logged."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(entry.parent)
        with _partial_entry(entry.parent) as partial:
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array)
            try:
                partial.rename(entry)
            except OSError:
                if not entry.is_dir():  # else another process kept the same in the meantime
                    raise
    except OSError as error:
        reason = error.strerror or str(error)  # numpy's error of a full disk has no strerror
        log(f"cannot write the image cache {entry}: {reason}; images will be decoded again next time")


@contextlib.contextmanager
def _partial_entry(folder: Path) -> Iterator[Path]:
    """A folder to fill, which is gone at the end unless it was renamed. It is locked: a killed process's
    isn't.
    """
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=_PARTIAL))
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.chmod(0o777 & ~artifacts.umask())
        yield partial
    finally:
        os.close(descriptor)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left half written."""
    for entry in os.scandir(folder):
        if not entry.name.startswith(_PARTIAL) or time.time() - entry.stat().st_mtime < _GRACE_S:
            continue
        with contextlib.suppress(OSError):  # another process holds it, or has just removed it
            descriptor = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
            finally:
                os.close(descriptor)
