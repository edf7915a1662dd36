"""Locks between processes: the kernel lets go of them when a process dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slimdeploy.toolchain.progress import log


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, waiting: str) -> Iterator[None]:
    """Hold the lock file `path`, with any number of others where all are `shared`. `waiting` is said where
    that takes a while.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            log(waiting)
            fcntl.flock(file, kind)
        yield


def machine_lock() -> Path:
    """The one that all workers of this user on this machine share."""
    return Path(tempfile.gettempdir()) / f"slimdeploy-sweep-{os.getuid()}.lock"
