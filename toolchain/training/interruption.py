"""The error of an interrupted run, which says from where it can be resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from slimdeploy.toolchain.errors import SlimdeployError, lost_worker


def resumable(error: SlimdeployError, epochs_done: int) -> SlimdeployError:
    """`error` with the epoch from which the run can be resumed."""
    if not epochs_done:
        return error
    found = SlimdeployError(f"{error.message}: `resume` continues after epoch {epochs_done}")
    found.exit_code = error.exit_code
    return found


@contextlib.contextmanager
def workers_explained(epochs_done: int) -> Iterator[None]:
    """Turn torch's error for a killed data-loading process into one line."""
    try:
        yield
    except RuntimeError as error:
        if lost := lost_worker(error):
            raise resumable(lost, epochs_done) from error
        raise
