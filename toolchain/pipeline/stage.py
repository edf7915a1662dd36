"""A stage of a run as data: what it writes, what it reads and depends on, and the work itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

StageResult = dict[str, Any]

COMMANDS = ("train", "prune", "finetune", "export", "calibrate", "bench", "package", "report")
"""The commands whose work a run does, in order."""


class Reported(Protocol):
    """What a stage returns."""

    def to_json(self) -> StageResult: ...


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    """In `run.json` and in the log."""
    command: str
    """The one of COMMANDS that it belongs to."""
    output: str
    """The file in the run folder that it writes; a sidecar or a history may lie beside it."""
    reads: tuple[str, ...]
    """The stages whose outputs it reads."""
    options: list[Any]
    """What it depends on beside them, as JSON."""
    work: Callable[[bool, Mapping[str, StageResult]], Reported]
    """Called with whether an interrupted run of it goes on, and with what the stages before reported."""
