"""Calls of the library are isolated from their caller's torch settings, and from each other."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_lock = threading.RLock()


def _renew() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)  # the thread that holds it doesn't exist in the new process


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """For the duration of a library call, torch's default type is float32, its default device is the CPU and
    autocast is off; afterwards the caller's settings and random numbers are as before.

    Calls from several threads run one after the other: these settings, the random numbers, torch.export and
    the progress display exist once per process.
    """
    with _lock, contextlib.ExitStack() as settings:
        if torch := sys.modules.get("torch"):  # else the caller has no settings; `deploy` works without torch
            settings.enter_context(torch.random.fork_rng(devices=()))
            if (dtype := torch.get_default_dtype()) != torch.float32:
                torch.set_default_dtype(torch.float32)
                settings.callback(torch.set_default_dtype, dtype)
            if torch.get_default_device().type != "cpu":
                settings.enter_context(torch.device("cpu"))
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    # Without the cache: it is cleared only at the end of the outermost autocast, so that
                    # training would go on with the converted weights of its first step.
                    settings.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        yield
