"""The teacher's logits in a file. A training that sees the same images again, for example of another pruned
network with the same seed, reads them instead of running the teacher, as in fast knowledge distillation
(Shen and Xing, arXiv 2112.01528).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError

_APPLICATION = 0x534C544C
"""SQLite's application_id of these files ("SLTL")."""
_SEAL_BYTES = 16
_TIMEOUT_S = 120
"""Time to wait for other trainings that write to the same file."""


class TeacherCache:
    """Logits by the contents of the batch, in an SQLite file that several trainings may use at the same time.

    A batch is found only if all its bytes are the same. So nothing has to be known about the data, the
    augmentation or the order of the images, and logits that are found are those of the same teacher. Damaged
    logits are computed again. If the file fails later, for example on a full disk, all logits are
    computed from then on.

    Raises SlimdeployError if the file cannot be used or is not a cache.
    """

    def __init__(self, path: Path, teacher_sha256: str) -> None:
        artifacts.make_folder(path.parent)
        if path.is_dir():
            raise SlimdeployError(f"{path} is a folder: name a file with `teacher_cache`")
        self.path, self._teacher = path, teacher_sha256.encode()
        self.found = self.asked = 0
        self._failure: str | None = None
        try:
            with self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")  # two trainings may make the file at the same time
                (own,), (tables,) = (
                    connection.execute(query).fetchone()
                    for query in ("PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
                )
                if own != _APPLICATION and (own or tables):
                    raise SlimdeployError(f"{path} is not a teacher cache: choose another path")
                if not tables:
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute("CREATE TABLE batches (digest BLOB PRIMARY KEY, logits BLOB)")
        except sqlite3.Error as error:
            raise SlimdeployError(
                f"cannot use the teacher cache {path} ({error}): choose another path, or delete it if it "
                "is damaged"
            ) from error

    def logits(self, images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, classes) float32 logits for images (N, C, H, W), on their device: from the file, else
        by `compute`, whose result is added to the file.
        """
        digest = self._digest(images)
        self.asked += 1
        row = self._execute("SELECT logits FROM batches WHERE digest = ? AND typeof(logits) = 'blob'", digest)
        if row and row[0] == _sealed(content := row[0][:-_SEAL_BYTES], digest):
            self.found += 1
            values = np.frombuffer(content, np.float32).reshape(len(images), -1)
            return torch.from_numpy(values.copy()).to(images.device)
        logits = compute(images).detach().float()
        content = logits.cpu().numpy().tobytes()
        self._execute("REPLACE INTO batches VALUES (?, ?)", digest, _sealed(content, digest))
        return logits

    def __str__(self) -> str:
        text = f"teacher cache {self.path}: {self.found:,} of {self.asked:,} batches were read from it"
        return f"{text}; it was no longer used after an error ({self._failure})" if self._failure else text

    def _execute(self, query: str, *values: bytes) -> tuple[bytes] | None:
        """The first row of the result, if any; None after an error, which ends the use of the file."""
        if self._failure is None:
            try:
                with self._connection() as connection:
                    row: tuple[bytes] | None = connection.execute(query, values).fetchone()
                    return row
            except sqlite3.Error as error:
                self._failure = str(error)
        return None

    def _digest(self, images: Tensor) -> bytes:
        """Hash of the teacher, the precision of its arithmetic, and the images."""
        device = images.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else images.dtype
        digest = hashlib.blake2b(self._teacher, digest_size=16)
        digest.update(f"{precision} {images.dtype} {tuple(images.shape)}".encode())
        digest.update(images.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.digest()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction: none is kept open, which a forked process could not use."""
        with closing(sqlite3.connect(self.path, timeout=_TIMEOUT_S)) as connection, connection:
            yield connection


def _sealed(content: bytes, digest: bytes) -> bytes:
    """`content` with a hash that detects changed bits, which SQLite doesn't."""
    return content + hashlib.blake2b(content, digest_size=_SEAL_BYTES, key=digest).digest()
