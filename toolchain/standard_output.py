"""Standard output carries a command's result alone: what libraries print there goes to standard error.

Libraries print with Python's `print`, with C's stdio and with the system call itself, and their child
processes inherit the file descriptor. So the descriptor is turned over, not only `sys.stdout`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_STDOUT, _STDERR = 1, 2
_results: TextIO | None = None
"""Where results go while `only_results` holds."""


@contextlib.contextmanager
def only_results() -> Iterator[None]:
    """Within, everything written to standard output goes to standard error, but for `result_stream()`."""
    global _results
    for descriptor in (_STDOUT, _STDERR):
        _keep_open(descriptor)
    own = sys.stdout
    if own is None or _results is not None:  # no standard output (`>&-`), or one command within another
        yield
        return
    own.flush()
    kept = os.dup(_STDOUT)
    _results = own
    if _is_descriptor(own):  # a test's stand-in has a file of its own
        _results = io.TextIOWrapper(
            io.FileIO(kept, "w", closefd=False), encoding=own.encoding, errors=own.errors, write_through=True
        )
    os.dup2(_STDERR, _STDOUT)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _flush_c()
        os.dup2(kept, _STDOUT)
        os.close(kept)
        _results = None


def result_stream() -> TextIO:
    """The real standard output, for a command that prints results while it works."""
    return _results or sys.stdout


def close_for_libraries() -> None:
    """The results are out: what a library prints while the process ends goes to standard error too."""
    if sys.stdout is not None and _is_descriptor(sys.stdout):
        sys.stdout.flush()
        os.dup2(_STDERR, _STDOUT)


def _keep_open(descriptor: int) -> None:
    """Closed (`2>&-`), the next file that is opened would get its number, and what libraries print."""
    try:
        os.fstat(descriptor)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != descriptor:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _is_descriptor(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _STDOUT
    except OSError:  # a stream in memory
        return False


def _flush_c() -> None:
    """C's stdio buffers what it prints to a pipe: it must go where it was printed to."""
    import ctypes

    ctypes.CDLL(None).fflush(None)
