"""Run a part of the test suite and read the result."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError


def run(folders: Sequence[Path]) -> dict[str, Any]:
    """Run pytest on `folders`: how many passed, which failed, and what was skipped and why.

    Raises ModuleNotFoundError if pytest is missing, SlimdeployError if it can't even start.
    """
    import pytest  # noqa: F401  # named in the error where it is missing

    with tempfile.TemporaryDirectory(prefix="slimdeploy-gpu-tests-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        ran = subprocess.run(
            [*command, *map(str, folders)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folders[0].parents[1],
        )
        if not report.is_file():
            raise SlimdeployError(f"pytest: {' '.join((ran.stdout + ran.stderr).split())[-300:]}")
        return read_report(report)


def read_report(report: Path) -> dict[str, Any]:
    """The same from a JUnit file."""
    passed, failed, skipped = 0, [], []
    for case in xml.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        reason = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif reason is not None:
            skipped.append({"test": name, "why": reason.get("message", "")})
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": skipped}
