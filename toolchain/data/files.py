"""Images that stay in their files until they are looked at, for sets that don't fit in memory. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

MEMORY_SHARE = 0.5
"""Share of the free memory that decoded images may take; larger sets are streamed, unless told otherwise."""


class FileImages:
    """Like an array (N, size, size, 3) uint8, but what is indexed is decoded then.

    `files` (N,) bytes are paths, `decode` returns the image (size, size, 3) of a path or raises
    SlimdeployError. `how` names what it does, for the fingerprint.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, files: np.ndarray, size: int, decode: Callable[[str], np.ndarray], how: str) -> None:
        self.files, self.size, self.decode, self.how = files, size, decode, how

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), self.size, self.size, 3

    def __getitem__(self, index: Any) -> np.ndarray:
        """The images of a slice, of an array of numbers or of one number, decoded."""
        chosen = self.files[index]
        if isinstance(chosen, bytes):
            return self.decode(os.fsdecode(chosen))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(self.decode, map(os.fsdecode, chosen)))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), dtype=np.uint8)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, decoded: for sets that were cut down to a few first."""
        return np.asarray(self[:], dtype=dtype)

    def fingerprint(self) -> str:
        """A hash that another, changed or removed file changes."""
        digest = hashlib.sha256(self.how.encode())
        for file in self.files:
            status = os.stat(file)
            digest.update(file + f":{status.st_size}:{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]

    def take(self, indices: np.ndarray, axis: int = 0) -> FileImages:
        """The images at `indices`, still in their files."""
        return FileImages(self.files[indices], self.size, self.decode, self.how)


def fits_in_memory(images: int, size: int) -> bool:
    """Whether so many images of `size`×`size` pixels, decoded, leave MEMORY_SHARE of the free memory free."""
    free = _free_bytes()
    return free is None or images * size * size * 3 <= MEMORY_SHARE * free


def _free_bytes() -> int | None:
    """What the system calls available; None where it doesn't say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {line.split(":")[0]: line.split()[1] for line in lines}
    return int(found["MemAvailable"]) * 1024 if "MemAvailable" in found else None
