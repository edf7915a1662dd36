"""Processor time of other programs during a measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq and steal (a neighbour on the same host) of proc(5)'s `cpu` line."""


@dataclass(frozen=True)
class Usage:
    """Seconds so far: wall-clock time, and processor time of all programs and of ours."""

    clock: float
    everyone: float
    ours: float

    def others_since(self, before: Usage) -> float:
        """Average number of processors that other programs used since `before`, at least 0."""
        elapsed = max(1e-9, self.clock - before.clock)
        return max(0.0, (self.everyone - before.everyone - (self.ours - before.ours)) / elapsed)


def usage(pids: Sequence[int], root: Path = Path("/")) -> Usage | None:
    """Usage now; `pids` and this process are ours. None if the machine doesn't report it."""
    try:
        everyone = _busy_ticks((root / "proc/stat").read_text().splitlines()) / TICKS
        ours = sum(_process_seconds(root / f"proc/{pid}/stat") for pid in pids)
    except (OSError, IndexError, KeyError, ValueError):
        return None
    return Usage(time.monotonic(), everyone, ours + time.process_time())


def _busy_ticks(lines: list[str]) -> int:
    """Of the processors that this process may use: others may be busy without disturbing it."""
    named = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("cpu")}
    own = [f"cpu{n}" for n in os.sched_getaffinity(0)] if hasattr(os, "sched_getaffinity") else ["cpu"]
    counted = own if all(name in named for name in own) else ["cpu"]
    return sum(int(named[name][i]) for name in counted for i in BUSY_FIELDS)


def stat_fields(path: Path) -> list[str]:
    """The fields of a process's or thread's stat (proc(5)) from the third one (state) on: the name before it
    may contain spaces. Raises OSError if it has ended.
    """
    return path.read_text().rpartition(")")[2].split()


def _process_seconds(path: Path) -> float:
    fields = stat_fields(path)
    return (int(fields[11]) + int(fields[12])) / TICKS
