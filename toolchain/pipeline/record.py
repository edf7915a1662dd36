"""Runs each stage once; its inputs, outputs and results are recorded in `run.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from slimdeploy import __version__
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.pipeline.stage import Stage, StageResult
from slimdeploy.toolchain.progress import log, working
from slimdeploy.toolchain.run_record import OUTDATED, read_record
from slimdeploy.toolchain.training.history import history_path
from slimdeploy.toolchain.training.state import state_path

Around = Callable[[str], AbstractContextManager[Any]]
"""Stage -> context manager entered around it."""
no_surroundings: Around = nullcontext


class RunRecord:
    """The finished stages of a run folder, recorded in its `run.json`."""

    def __init__(self, folder: Path, around: Around = no_surroundings) -> None:
        self._folder, self._path, self._around = folder, folder / "run.json", around
        self._known: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            try:
                self._known = read_record(self._path)
            except SlimdeployError as error:
                advice = "choose another folder, or remove this one"
                raise SlimdeployError(f"{error.message}; {advice}") from error
        self.results: dict[str, StageResult] = {}

    def check(self, stages: Sequence[Stage]) -> None:
        """Mark the stages of an earlier recipe as OUTDATED. Raises SlimdeployError if a stage would replace a
        file that this run did not write.
        """
        now = {stage.name for stage in stages}
        for name, entry in self._known.items():
            entry.pop(OUTDATED, None)
            if name not in now:
                entry[OUTDATED] = True
        if self._known:
            artifacts.write_json(self._path, self._known)
        for stage in stages:
            if stage.name in self._known:
                continue
            output = self._folder / stage.output
            for path in (output, artifacts.sidecar(output), history_path(output), state_path(output)):
                if path.exists():
                    raise SlimdeployError(
                        f"{path} exists, and {self._path} has no record of it: choose another folder, or "
                        "move the file away"
                    )

    def do(self, stage: Stage) -> None:
        """Run `stage`, unless its output exists unchanged and was made from the same inputs.

        The stages that it reads must be finished. An interrupted stage is resumed if its inputs are the same
        and it saved a state.
        """
        key, known = self._key(stage), self._known.get(stage.name, {})
        output = self._folder / stage.output
        same = known.get("inputs") == key
        if (
            same
            and "result" in known
            and output.exists()
            and artifacts.sha256_file(output) == known["sha256"]
        ):
            log(f"{stage.name}: up to date")
        else:
            log(f"{stage.name} …")
            with self._around(stage.name), working(stage.name):
                self._record(stage.name, {"inputs": key})
                result = stage.work(same and state_path(output).exists(), self.results).to_json()
            known = {
                "inputs": key,
                "output": stage.output,
                "sha256": artifacts.sha256_file(output),
                "result": result,
            }
            self._record(stage.name, known)
        self.results[stage.name] = known["result"]

    def tell_outdated(self) -> None:
        """Log which files in the folder an earlier recipe wrote, with a stage that is not in this one."""
        outputs = [entry.get("output", "") for entry in self._known.values() if OUTDATED in entry]
        if left := [output for output in outputs if output and (self._folder / output).exists()]:
            log(f"! written by an earlier recipe, and not part of this run: {', '.join(left)}")

    def forget(self, names: Iterable[str]) -> None:
        """Forget the stages `names`, so that they run again from the beginning."""
        for name in names:
            if name in self._known:
                self._known[name] = {"inputs": ""}  # its output stays one of this run
        artifacts.write_json(self._path, self._known)

    def entry(self, name: str) -> dict[str, Any] | None:
        """The record of stage `name`."""
        return self._known.get(name)

    def adopt(self, name: str, other: RunRecord) -> None:
        """Copy the record of stage `name` from `other`; its output must be in this folder too."""
        self._record(name, other._known[name])

    def _key(self, stage: Stage) -> str:
        """Hash of all inputs of the stage."""
        parents = [self._known[name]["sha256"] for name in stage.reads]
        inputs = [__version__, stage.name, [*stage.options, *parents]]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def _record(self, name: str, entry: dict[str, Any]) -> None:
        self._known[name] = entry
        artifacts.write_json(self._path, self._known)
