"""`run.json` of a run folder: for each stage the hash of its inputs, its output with the SHA-256, and its
result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError

OUTDATED = "outdated"
"""Key of an entry whose stage is not in the latest recipe."""


def read_record(path: Path) -> dict[str, dict[str, Any]]:
    """Stage -> its entry; `sha256` and `result` are missing if the stage was started but not finished.

    Raises SlimdeployError if the file isn't the record of a run.
    """
    entries = artifacts.read_json(path, "record of a run")
    if not isinstance(entries, dict) or not all(_is_entry(entry) for entry in entries.values()):
        raise SlimdeployError(f"{path} is not the record of a run")
    return entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("inputs"), str):
        return False
    return "result" not in entry or (
        isinstance(entry["result"], dict) and isinstance(entry.get("sha256"), str)
    )
