"""Locks between processes. The kernel releases them when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError

_POLL_S = 0.2


@contextlib.contextmanager
def exclusive(path: Path, what: str, *, waiting: str | None = None) -> Iterator[None]:
    """Hold the file or folder `path` alone, against every other caller for the same path.

    The lock file is `.lock` in a folder, which exists already, or `.<name>.lock` beside a file, which may not
    exist yet. It is removed at the end. `what` names the path in the error. With `waiting`, that line is
    logged and the lock waited for.

    Raises SlimdeployError, with the process ID of the holder, where another process holds it; and where the
    lock file can't be written.
    """
    import filelock  # 10 ms, which `slimdeploy --help` doesn't need

    file = lock_file(path)
    holder = _holder(file)  # read now: filelock before 4.0 empties the file when it tries
    lock = filelock.FileLock(file)
    try:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if waiting is None:
                raise
            _log(waiting)
            lock.acquire(poll_interval=_POLL_S)
    except filelock.Timeout:
        who = holder or _holder(file) or "another process"
        raise SlimdeployError(f"{what} is in use by {who}: wait for it to end") from None
    except OSError as error:
        raise SlimdeployError(f"cannot write {file}: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):  # on a full disk the holder has no name
            file.write_text(f"{os.getpid()}\n")
        yield
    finally:
        # Before the release: a process that has opened the file by now finds it unlinked and opens a new one.
        file.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def readers_and_writer(file: Path, *, alone: bool, waiting: str) -> Iterator[None]:
    """Hold the lock file `file`: `alone`, or together with all that don't ask for it alone. Waits for it, and
    logs `waiting` where that takes a while.
    """
    import filelock

    lock = filelock.ReadWriteLock(file)
    acquire = lock.acquire_write if alone else lock.acquire_read
    try:
        acquire(blocking=False)
    except filelock.Timeout:
        _log(waiting)
        acquire()
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds `path` by `exclusive`."""
    import filelock

    file = lock_file(path)
    if not file.exists():
        return False
    try:
        with filelock.FileLock(file, blocking=False):
            return False
    except filelock.Timeout:
        return True


def lock_file(path: Path) -> Path:
    """Where the lock of `path` is."""
    return path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")


def _log(line: str) -> None:
    # It needs rich, which the doctor of a bare machine goes without.
    from slimdeploy.toolchain.progress import log

    log(line)


def _holder(file: Path) -> str:
    """Who wrote the lock file; empty where nobody did, or not yet."""
    try:
        return f"process {int(file.read_text())}"
    except (OSError, ValueError):
        return ""
