"""The environment of processes that tests start."""

from __future__ import annotations

import os
from pathlib import Path

import slimdeploy

TESTS = Path(__file__).parent


def process_environment() -> dict[str, str]:
    """Environment of a fresh process that imports this slimdeploy, the tests' helpers and the tiny
    networks.
    """
    paths = [
        TESTS / "subprocesses",
        TESTS,
        Path(slimdeploy.__file__).parents[1],
        os.environ.get("PYTHONPATH"),
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in paths if p)}
