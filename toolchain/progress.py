"""Progress on standard error: a bar on a terminal, else a line every half minute."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from slimdeploy.toolchain.errors import with_names

console = Console(stderr=True)
"""The console for everything except a command's result."""

DELAY_S = 2.0
"""Minimum duration before anything is shown."""
REDRAW_S = 0.5
LINE_S = 30.0
"""Interval of lines without a terminal."""


@contextlib.contextmanager
def progress_bar(title: str, *, total: int) -> Iterator[Callable[..., None]]:
    """Yields `advance(count, note="")` for work of `total` parts. Nothing is shown inside another bar."""
    display = _Display(title, total)
    with _shown(display):
        yield display.advance


@contextlib.contextmanager
def working(title: str) -> Iterator[None]:
    """For work of unknown length: shows the elapsed time, until a bar is started inside."""
    with _shown(_Display(title, None)):
        yield


def log(message: str) -> None:
    """Print one line on standard error, with parameters named as in errors."""
    console.print(with_names(message), highlight=False, soft_wrap=True, markup=False)


_now: _Display | None = None
"""The displays in use; of nested ones only one is shown."""


@contextlib.contextmanager
def _shown(display: _Display) -> Iterator[None]:
    global _now
    outer = _now
    if outer and outer.total is not None:  # keep the outer bar
        yield
        return
    if outer:
        outer.stop()
    _now = display
    display.start()
    try:
        yield
    finally:
        display.stop()
        _now = outer
        if outer:
            outer.start()


class _Display:
    """Shows progress in a thread, so that the work never waits for the terminal."""

    def __init__(self, title: str, total: int | None) -> None:
        self.total = total
        self._title, self._done, self._note = title, 0, ""
        self._begin = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        self._note = note

    def start(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _show(self) -> None:
        if not console.is_terminal:
            while not self._ended.wait(LINE_S):
                log(self._line())
        elif not self._ended.wait(DELAY_S):
            self._draw()

    def _draw(self) -> None:
        from rich import progress as bars  # slow to import

        columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}", markup=False)]
        if self.total is not None:
            columns += [bars.BarColumn(), bars.MofNCompleteColumn()]
        columns.append(bars.TimeElapsedColumn())
        if self.total is not None:
            columns += [bars.TextColumn("ETA"), bars.TimeRemainingColumn()]
        columns.append(bars.TextColumn("{task.fields[note]}", markup=False))
        with bars.Progress(*columns, console=console, transient=True, auto_refresh=False) as drawn:
            task = drawn.add_task(self._title, total=self.total, note="")
            drawn.tasks[0].start_time = self._begin
            drawing = True
            while drawing:
                drawing = not self._ended.wait(REDRAW_S)
                drawn.update(task, completed=self._done, note=self._note, refresh=True)

    def _line(self) -> str:
        spent = time.monotonic() - self._begin
        parts = [f"{self._title}:"]
        if self.total:
            parts.append(f"{self._done:,} of {self.total:,},")
        parts.append(f"{_duration(spent)} so far")
        if self.total and 0 < self._done < self.total:
            parts.append(f"and about {_duration(spent * (self.total / self._done - 1))} left")
        return " ".join(parts) + (f" ({self._note})" if self._note else "")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
