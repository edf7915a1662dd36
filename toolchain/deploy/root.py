"""Where deployed versions lie. Python's standard library only, like all that `environment.py` imports."""

from __future__ import annotations

import os
from pathlib import Path


def default_root() -> Path:
    """`$SLIMDEPLOY_HOME`, or `~/.local/share/slimdeploy`."""
    return Path(os.environ.get("SLIMDEPLOY_HOME") or Path.home() / ".local/share/slimdeploy")
