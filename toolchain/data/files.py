"""Images that are read from their files when needed, for sets that don't fit in memory. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.launch import launch

MEMORY_SHARE = 0.5
"""Share of the free memory that decoded images may take; larger sets are streamed by default."""


class FileImages:
    """Behaves like an array (N, size, size, 3) uint8; indexing decodes the images.

    `files` (N,) bytes are paths. `decode` returns the image (size, size, 3) of a path or raises
    SlimdeployError. `how` describes `decode`, for the fingerprint.
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
        """The decoded images of a slice, an array of indices or one index."""
        chosen = self.files[index]
        if isinstance(chosen, bytes):
            return self.decode(os.fsdecode(chosen))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(self.decode, map(os.fsdecode, chosen)))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), dtype=np.uint8)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All images, decoded; for sets that were first reduced to a few images."""
        return np.asarray(self[:], dtype=dtype)

    def fingerprint(self) -> str:
        """A hash that changes if a file is added, changed or removed."""
        digest = hashlib.sha256(self.how.encode())
        for file in self.files:
            status = os.stat(file)
            digest.update(file + f":{status.st_size}:{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]

    def take(self, indices: np.ndarray, axis: int = 0) -> FileImages:
        """The images at `indices`, still in files."""
        return FileImages(self.files[indices], self.size, self.decode, self.how)


def fits_in_memory(images: int, size: int) -> bool:
    """Whether `images` decoded images of `size`×`size` pixels fit in MEMORY_SHARE of the free memory."""
    free = _free_bytes()
    needed = images * size * size * 3 * launch().local_size  # each process of torchrun holds all images
    return free is None or needed <= MEMORY_SHARE * free


def _free_bytes() -> int | None:
    """The available memory; None if the system doesn't report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {line.split(":")[0]: line.split()[1] for line in lines}
    return int(found["MemAvailable"]) * 1024 if "MemAvailable" in found else None
