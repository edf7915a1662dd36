"""What `slimdeploy doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WARNING, MISSING = "ok", "note", "warning", "missing"
"""MISSING alone stops the main job; a NOTE asks for nothing."""


@dataclass(frozen=True)
class Finding:
    """`mend` is a command to run as it is."""

    name: str
    status: str
    detail: str
    mend: str | None = None
