"""Results as files: JSON documents with a `kind` and a `schema` version, described in
`schemas/<kind>-<version>.json`.

Every file in `benchmarks/results/` is one of these.
"""

from __future__ import annotations

import datetime
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError, shorten
from slimdeploy.toolchain.measure import conditions

SCHEMAS = {"bench": 1, "gpu-check": 1, "lut": 1, "sweep": 1, "table": 1}
"""Kind of document -> the version that is written. `bench`, `lut` and `sweep` belong to the commands,
`gpu-check` to gpu_check.py; `table` is for any script: description, command to repeat it, and rows of plain
values.
"""


def document(
    kind: str, *, command: str, machine: dict[str, Any] | None = None, **content: Any
) -> dict[str, Any]:
    """A result of `kind` with its header: time, command, machine."""
    return {
        "kind": kind,
        "schema": SCHEMAS[kind],
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine or conditions.machine(),
        **content,
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result atomically, indented, with each list of numbers on one line."""
    text = artifacts.json_text(result, indent=1)
    text = re.sub(r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    artifacts.write_bytes(path, (text + "\n").encode())


def read(path: Path, kind: str) -> dict[str, Any]:
    """Read a result of `kind`; raises SlimdeployError if it is another kind of file, or a newer one."""
    found = artifacts.read_json(path, f"{kind} result")
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise SlimdeployError(f"{path} is not a {kind} result: slimdeploy {kind} … --output writes one")
    if found.get("schema") != SCHEMAS[kind]:
        raise SlimdeployError(
            f"{path}: schema {found.get('schema')}; this slimdeploy reads {SCHEMAS[kind]}. Measure again"
        )
    _check_shape(found, path, kind)
    return found


def schema(kind: str) -> dict[str, Any]:
    """The JSON schema of the results of `kind`."""
    file = resources.files(__package__) / "schemas" / f"{kind}-{SCHEMAS[kind]}.json"
    return json.loads(file.read_text("utf-8"))


def _check_shape(result: dict[str, Any], path: Path, kind: str) -> None:
    """Raises SlimdeployError for the first value in `result` that violates its schema."""
    import jsonschema

    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema(kind)).iter_errors(result)
    )
    if problem:
        place = problem.json_path.removeprefix("$").removeprefix(".") or "the document"
        raise SlimdeployError(f"{path} is not a {kind} result: {place}: {shorten(problem.message)}")


def read_runs(path: Path, kind: str) -> list[dict[str, Any]]:
    """The result at `path`; for a folder, every `*.json` in it: the results of repeated runs.

    Raises SlimdeployError like `read`, and for a folder without results.
    """
    if not path.is_dir():
        return [read(path, kind)]
    found = [read(one, kind) for one in sorted(path.glob("*.json"))]
    if not found:
        raise SlimdeployError(f"no {kind} results (*.json) in the folder {path}")
    return found


def without_samples(result: dict[str, Any]) -> dict[str, Any]:
    """The same result without its raw samples."""
    rows = [{k: v for k, v in row.items() if k != "samples_ms"} for row in result["rows"]]
    return {**result, "rows": rows}
