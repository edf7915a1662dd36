"""A stage of a run as data: its command, inputs, output and function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

StageResult = dict[str, Any]

COMMANDS = ("train", "prune", "finetune", "export", "calibrate", "bench", "package", "report")
"""The commands that a run performs, in order."""


class Reported(Protocol):
    """The result of a stage."""

    def to_json(self) -> StageResult: ...


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    """Name in `run.json` and in the log."""
    command: str
    """The command in COMMANDS that it belongs to."""
    output: str
    """File in the run folder that it writes; it may have a sidecar or a history."""
    reads: tuple[str, ...]
    """The stages whose outputs it reads."""
    options: list[Any]
    """Further inputs, as JSON."""
    work: Callable[[bool, Mapping[str, StageResult]], Reported]
    """Called with whether to resume an interrupted run, and with the results of earlier stages."""
