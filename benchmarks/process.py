"""The other end of a worker: starts its process, sends it commands, waits for it to be quiet, ends it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slimdeploy.benchmarks import worker
from slimdeploy.toolchain.errors import SlimdeployError

SETTLE_STEP_S = 0.03
SETTLE_LIMIT_S = 1.0


class Worker:
    """A model in a fresh process of its own. `label` names it in errors. A context manager that ends it."""

    def __init__(self, label: str, opener: worker.Opener, modules: tuple[str, ...] = ()) -> None:
        self.label = label
        context = multiprocessing.get_context("spawn")  # a fork would inherit our threads and our memory
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(theirs, opener, modules), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def call(self, command: str, *arguments: Any) -> Any:
        """Have the worker do one of `worker.Bench`'s commands and return what it answers.

        Raises SlimdeployError, with the label in front, where the worker does, or where its process dies.
        """
        try:
            self._pipe.send((command, arguments))
            result, error = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(5)
            raise SlimdeployError(
                f"{self.label}: its process ended during {command} ({_ending(self._process.exitcode)})"
            ) from None
        if error is not None:
            message = str(error)
            raise type(error)(message if self.label in message else f"{self.label}: {message}")
        return result

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._pipe.close()  # the worker sees the end of its commands and returns
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def settle(workers: Iterable[Worker]) -> None:
    """Wait until no worker uses the CPU: a runtime's threads spin on for a while after a run."""
    pids = [worker.pid for worker in workers]
    end = time.monotonic() + SETTLE_LIMIT_S
    before = _cpu_ticks(pids)
    while time.monotonic() < end:
        time.sleep(SETTLE_STEP_S)
        now = _cpu_ticks(pids)
        if now == before:
            return
        before = now


def _cpu_ticks(pids: list[int]) -> list[int]:
    """User and system time of each process so far; zeros where /proc has none (then one step is waited)."""
    ticks = []
    for pid in pids:
        try:
            # After the command's name, which may hold spaces: fields 14 and 15 of proc(5).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks.append(int(fields[11]) + int(fields[12]))
        except OSError:
            ticks.append(0)
    return ticks


def _ending(exitcode: int | None) -> str:
    if exitcode == -9:
        return "killed: is there enough memory?"
    return f"exit code {exitcode}"
