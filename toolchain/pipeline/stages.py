"""The stages of a run, each done once: what it was given, wrote and reported is kept in `run.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from slimdeploy import __version__
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.run_record import read_record
from slimdeploy.toolchain.training.state import state_path

StageResult = dict[str, Any]
Around = Callable[[str], AbstractContextManager[Any]]
"""Stage -> what is entered around it."""
no_surroundings: Around = nullcontext


class Reported(Protocol):
    """What a stage returns."""

    def to_json(self) -> StageResult: ...


class Stages:
    """The stages done so far in a run folder, kept in its `run.json`."""

    def __init__(self, folder: Path, around: Around = no_surroundings) -> None:
        self._path, self._around = folder / "run.json", around
        self._known: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._known = read_record(self._path)
        self.results: dict[str, StageResult] = {}

    def do(self, name: str, output: Path, inputs: list[Any], work: Callable[[bool], Reported]) -> None:
        """Run `work(resume)` unless `output` is there, made from the same `inputs`.

        `resume` is true where the same work was started before and left a state.
        """
        key = hashlib.sha256(json.dumps([__version__, name, inputs], sort_keys=True).encode()).hexdigest()
        known = self._known.get(name, {})
        same = known.get("inputs") == key
        if (
            same
            and "result" in known
            and output.exists()
            and artifacts.sha256_file(output) == known["sha256"]
        ):
            log(f"{name}: up to date")
        else:
            with self._around(name):
                log(f"{name} …")
                self._record(name, {"inputs": key})
                result = work(same and state_path(output).exists()).to_json()
            known = {"inputs": key, "sha256": artifacts.sha256_file(output), "result": result}
            self._record(name, known)
        self.results[name] = known["result"]

    def entry(self, name: str) -> dict[str, Any] | None:
        """What is recorded of stage `name`."""
        return self._known.get(name)

    def adopt(self, name: str, other: Stages) -> None:
        """Record stage `name` as `other` has it, whose output lies here too."""
        self._record(name, other._known[name])

    def sha256(self, name: str) -> str:
        """Hash of what stage `name` wrote."""
        return self._known[name]["sha256"]

    def _record(self, name: str, entry: dict[str, Any]) -> None:
        self._known[name] = entry
        artifacts.write_json(self._path, self._known)
