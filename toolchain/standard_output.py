"""Keep standard output for a command's result: everything that libraries print goes to standard error.

Libraries print with Python's `print`, with C's stdio and with system calls, and child processes inherit the
file descriptor. Therefore the descriptor is redirected, not only `sys.stdout`.
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
"""The stream for results inside `only_results`."""


@contextlib.contextmanager
def only_results() -> Iterator[None]:
    """Inside, everything written to standard output goes to standard error, except to `result_stream()`."""
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
    if _is_descriptor(own):  # a test's replacement has its own file
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
    """The real standard output, for a command that prints results while it runs."""
    return _results or sys.stdout


def close_for_libraries() -> None:
    """Redirect output of libraries at the end of the process too, after the result was printed."""
    if sys.stdout is not None and _is_descriptor(sys.stdout):
        sys.stdout.flush()
        os.dup2(_STDERR, _STDOUT)


def _keep_open(descriptor: int) -> None:
    """Open /dev/null on a closed descriptor (`2>&-`): otherwise the next opened file would get its number."""
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
    """Flush C's stdio, which buffers output to a pipe, before the descriptor is redirected."""
    import ctypes

    ctypes.CDLL(None).fflush(None)
