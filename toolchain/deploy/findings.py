"""Findings of `slimdeploy doctor`."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WARNING, MISSING = "ok", "note", "warning", "missing"
"""Only MISSING prevents the main task; a NOTE needs no action."""


@dataclass(frozen=True)
class Finding:
    """`mend` is a complete command."""

    name: str
    status: str
    detail: str
    mend: str | None = None
