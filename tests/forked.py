"""`slimdeploy` in several processes at once, forked off one that has torch imported: they start at once.

Forked off a server, not off the tests' own process: autograd can't be used in a child of a process that used
it.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing.context
import multiprocessing.forkserver
import os
import sys
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from processes import process_environment
from torch.distributed import TCPStore


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    """What processes are forked off, started once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked_imports"])
    with unittest.mock.patch.dict(os.environ, process_environment()):
        multiprocessing.forkserver.ensure_running()
    return context


class Forked:
    """One process that runs `slimdeploy ARGUMENTS…`, after `prepare()` if that is given; what it prints goes
    to files in `folder`.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        folder: Path,
        environment: dict[str, str],
        prepare: Callable[[], None] | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        for name in ("out", "err"):
            (folder / name).touch()
        self._folder = folder
        words = [str(a) for a in arguments]
        self._process = _server().Process(
            target=_run, args=(words, folder, {**os.environ, **environment}, prepare)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for its end, but no longer than that."""
        self._process.join(seconds)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; minus the signal's number where one ended it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"still running after {seconds} s: {self.err}"
        return self._process.exitcode

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()


@contextlib.contextmanager
def ranks(count: int, arguments: Sequence[object], folder: Path) -> Iterator[list[Forked]]:
    """`count` processes with the environment that torchrun would give them; killed at the end if need be."""
    # torchrun keeps the store that they meet in, so that it outlives each of them; so does this process.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "TORCHELASTIC_USE_AGENT_STORE": True,
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}  # fmt: skip
    started = []
    for rank in range(count):
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        started.append(Forked(arguments, folder / f"rank{rank}", {k: str(v) for k, v in environment.items()}))
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def until(happened: Callable[[], bool], process: Forked) -> None:
    """Wait for something while `process` runs."""
    while not happened():
        assert process.running, process.err
        time.sleep(0.005)


def _run(
    arguments: list[str], folder: Path, environment: dict[str, str], prepare: Callable[[], None] | None
) -> None:
    from slimdeploy.toolchain.cli import main

    os.environ.update(environment)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["slimdeploy", *arguments]
    if prepare:
        prepare()
    main()
