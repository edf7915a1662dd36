"""Locks between processes. The kernel releases them when the process ends, even if it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError

_POLL_S = 0.2


@contextlib.contextmanager
def exclusive(path: Path, what: str, *, waiting: str | None = None) -> Iterator[None]:
    """Lock the file or folder `path` exclusively.

    The lock file is `.lock` in a folder, which must exist, or `.<name>.lock` beside a file, which need not
    exist. It is removed at the end. `what` names the path in the error. With `waiting`, that line is logged
    and the function waits for the lock.

    Raises SlimdeployError if another process holds the lock, with its process ID, or if the lock file can't
    be written.
    """
    import filelock  # 10 ms, which `slimdeploy --help` doesn't need

    file = lock_file(path)
    holder = _holder(file)  # read now: filelock before 4.0 empties the file when it tries
    lock = filelock.FileLock(file)
    try:
        file.open("ab").close()  # filelock calls a lock held if its file can't be made
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
    """Lock `file`: exclusively if `alone`, else shared. Logs `waiting` if it has to wait."""
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


def mark_in_use(descriptor: int) -> None:
    """Lock an open temporary file or folder itself, until it is closed: `remove_unused` keeps it.

    filelock can't do this: it would need a second file, which a killed process would leave as well.
    """
    with contextlib.suppress(OSError):  # some network file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_unused(path: Path) -> None:
    """Remove the file or folder at `path`, unless a process has it open and marked by `mark_in_use`."""
    with contextlib.suppress(OSError):  # in use, removed since, or another user's
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)


def lock_file(path: Path) -> Path:
    """The lock file of `path`."""
    return path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")


def _log(line: str) -> None:
    # Imported late: it needs rich, which a machine without slimdeploy's dependencies lacks.
    from slimdeploy.toolchain.progress import log

    log(line)


def _holder(file: Path) -> str:
    """The process named in the lock file; empty if there is none (yet)."""
    try:
        return f"process {int(file.read_text())}"
    except (OSError, ValueError):
        return ""
