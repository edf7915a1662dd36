"""The parent's side of a worker: start its process, send commands, wait until it is quiet, end it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import worker
from slimdeploy.toolchain.measure.load import stat_fields
from slimdeploy.toolchain.measure.subjects import Subject

SETTLE_STEP_S = 0.001
SETTLE_LIMIT_S = 1.0
TASKS, BLIND_STEP_S = Path("/proc/self/task"), 0.03
"""Waiting time if threads can't be inspected."""
PROCESSOR_FIELD = 36
"""`processor` among the `stat_fields`."""
START = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from slimdeploy.toolchain.measure import worker; worker.serve(int(sys.argv[1]))"
)
"""The worker's program. Its arguments: the descriptor of the pipe, and the caller's `sys.path`."""


class Worker:
    """A model in its own fresh process. `label` names it in errors. A context manager that ends it.

    The process imports the modules that it needs and nothing else. `multiprocessing.Process` would run the
    caller's script a second time (its `__main__`), and need a guard in it.
    """

    def __init__(self, label: str, opener: worker.Opener, modules: tuple[str, ...] = ()) -> None:
        self.label = label
        self.opened: worker.Opened
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the first command reports its end
            self._pipe.send((opener, modules))

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, command: str, *arguments: Any) -> Any:
        """Run one of `worker.Bench`'s commands in the worker and return its result.

        Raises SlimdeployError, prefixed by the label, if the worker does, or if its process dies.
        """
        try:
            self._pipe.send((command, arguments))
            result, error = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._end()
            raise SlimdeployError(
                f"{self.label}: its process ended during {command} ({_ending(self._process.returncode)})"
            ) from None
        if error is not None:
            message = str(error)
            raise type(error)(message if self.label in message else f"{self.label}: {message}")
        return result

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._pipe.close()  # the worker sees that the pipe is closed and returns
        self._end()

    def _end(self) -> None:
        """Wait for the end of the process; kill it if it doesn't end."""
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def launched(subjects: Sequence[Subject], batch: int, order: Sequence[int]) -> Iterator[list[Worker]]:
    """A fresh process for each of `subjects`, with its model loaded for `batch` images; all end with the
    block.

    They are started in `order`, which contains indices of subjects. Models with one CPU thread share a
    processor.
    """
    with contextlib.ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for i in order:  # start all before waiting: they import their libraries in parallel
            subject = subjects[i]
            workers[i] = stack.enter_context(Worker(subject.label, subject.opener, subject.modules))
        for worker in workers.values():
            worker.opened = worker.call("open", batch)
        if all(subjects[i].threads == 1 and worker.opened.on_cpu for i, worker in workers.items()):
            share_processor(list(workers.values()))
        yield [workers[i] for i in range(len(subjects))]


def share_processor(workers: Sequence[Worker]) -> None:
    """Move all threads of the workers to the processor that the system chose for the first one.

    At any moment two processors differ by several per cent, because of other programs, neighbours of a
    virtual machine and clocks. The system changes the processor of a process seldom, so alternating between
    two processes doesn't cancel the difference.
    """
    # Nothing is moved without /proc or where a sandbox forbids it; a crash is reported by the next command.
    with contextlib.suppress(OSError):
        processor = int(stat_fields(Path(f"/proc/{workers[0].pid}/stat"))[PROCESSOR_FIELD])
        for one in workers:
            for task in Path(f"/proc/{one.pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # a thread that has ended
                    os.sched_setaffinity(int(task.name), {processor})


def settle(workers: Iterable[Worker]) -> None:
    """Wait until no thread of a worker runs: threads of a runtime may spin for a while after a run."""
    end = time.monotonic() + SETTLE_LIMIT_S
    time.sleep(SETTLE_STEP_S if TASKS.exists() else BLIND_STEP_S)
    while any(_runs(worker.pid) for worker in workers) and time.monotonic() < end:
        time.sleep(SETTLE_STEP_S)


def _runs(pid: int) -> bool:
    """Whether a thread of the process runs or waits for a processor (proc(5): state R)."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            if stat_fields(path)[0] == "R":
                return True
    return False


def _ending(exitcode: int | None) -> str:
    if exitcode == -9:
        return "killed: is there enough memory?"
    return f"exit code {exitcode}"
