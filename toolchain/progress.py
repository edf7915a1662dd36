"""The progress bar: on standard error, only where a person looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)
"""For everything that isn't a command's result."""


@contextlib.contextmanager
def progress_bar(title: str, *, total: int) -> Iterator[Callable[..., None]]:
    """Yields `advance(count, note="")`. Without a terminal nothing is drawn."""
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(count: int = 1, note: str = "") -> None:
            progress.update(task, advance=count, note=note)

        yield advance


def log(message: str) -> None:
    """One line for the person who waits, on standard error."""
    console.print(message, highlight=False, soft_wrap=True, markup=False)
