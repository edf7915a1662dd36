"""What to say where a run is broken off: that, and from where it can go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from slimdeploy.toolchain.errors import SlimdeployError, lost_worker


def resumable(error: SlimdeployError, epochs_done: int) -> SlimdeployError:
    """`error` with what is left to go on from."""
    if not epochs_done:
        return error
    found = SlimdeployError(f"{error}: --resume goes on after epoch {epochs_done}")
    found.exit_code = error.exit_code
    return found


@contextlib.contextmanager
def workers_explained(epochs_done: int) -> Iterator[None]:
    """Turn what torch raises where a process that reads images was killed into one line."""
    try:
        yield
    except RuntimeError as error:
        if lost := lost_worker(error):
            raise resumable(lost, epochs_done) from error
        raise
