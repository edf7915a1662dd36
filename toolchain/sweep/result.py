"""The result of a sweep: the document `sweep.json`, and the table for the terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.formatting import grid, percent, short
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.sweep import choice
from slimdeploy.toolchain.sweep.choice import Condition, Row
from slimdeploy.toolchain.sweep.space import Point
from slimdeploy.toolchain.sweep.storage import masked
from slimdeploy.toolchain.sweep.worker import Job

FILE = "sweep.json"
PICKED = ("picked.safetensors", "picked.onnx", "picked.onnx.json")


def sweep_document(
    job: Job, rows: Sequence[Row], failed: dict[Point, str], picked: dict[str, Any] | None
) -> dict[str, Any]:
    """A `sweep` document (toolchain/measure/schemas/sweep-1.json).

    `rows` also has trials of earlier calls and other machines: the space of a grid includes their values.
    """
    recipe, options, space = job.recipe, job.options, job.space
    if options.trials is None:
        space = space.including(Point(row["sparsity"], row["ratio"], row["align"]) for row in rows)
    return results.document(
        "sweep",
        command=command_line(options.storage),
        title=f"{recipe.name}: {recipe.network}, on {recipe.data.name}",
        recipe=recipe.name,
        study={"name": options.study, "storage": masked(options.storage), "method": options.method},
        space=space.to_json(),
        trials=list(rows),
        failed=[{"name": point.name, **point.to_json(), "error": why} for point, why in failed.items()],
        front=[row["name"] for row in choice.pareto_front(rows)],
        picked=picked,
        remarks=remarks(rows),
    )


def command_line(storage: str) -> str:
    """The command line, without the password of its storage."""
    shown = [argument.replace(storage, masked(storage)) for argument in sys.argv[1:]]
    return shlex.join(["slimdeploy", *shown])


def remarks(rows: Sequence[Row]) -> list[str]:
    """Reasons why the trials are not comparable."""
    said = []
    if len(cpus := sorted({row["cpu"] for row in rows})) > 1:
        said.append(
            f"the trials were timed on different machines ({'; '.join(cpus)}): compare their speed-ups, not "
            "their milliseconds"
        )
    # A study of an earlier version has no number of threads.
    if len(threads := {row["threads"] for row in rows if "threads" in row}) > 1:
        counts = ", ".join(sorted("default" if count is None else str(count) for count in threads))
        said.append(
            f"the trials were timed with different numbers of threads ({counts}): their milliseconds, and so "
            "the front, are not comparable"
        )
    noisy = sum(bool(row["remarks"]) for row in rows)
    if noisy:
        said.append(
            f"{noisy} of {len(rows)} trials were measured on a busy or noisy machine: their bench.json says "
            "how reliable they are"
        )
    return said


def check_own(folder: Path) -> None:
    """Raises SlimdeployError if `folder` contains a file with the name of a result that no sweep has
    written.
    """
    path, written = folder / FILE, False
    advice = "choose another folder, or move the file away"
    if path.exists():
        try:
            written = bool((results.read(path, "sweep")["picked"] or {}).get("files"))
        except SlimdeployError as error:
            raise SlimdeployError(f"{error.message}; {advice}") from error
    for name in PICKED:
        if (folder / name).exists() and not written:
            raise SlimdeployError(f"{folder / name} was not written by a sweep: {advice}")


def remove_picked(folder: Path) -> None:
    """Remove what an earlier call picked: it may not meet the conditions of this one."""
    for name in PICKED:
        (folder / name).unlink(missing_ok=True)


def described(
    row: Row, conditions: Sequence[Condition], folder: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The picked network for the document, and the files to copy: `picked.safetensors` and `.onnx`, for the
    next command. There are none if it was made on a machine that doesn't share the folder.
    """
    onnx = folder / row["onnx"]
    sources = dict(zip(PICKED, (folder / row["checkpoint"], onnx, artifacts.sidecar(onnx)), strict=True))
    if not all(path.is_file() for path in sources.values()):
        sources = {}
    picked = {
        "name": row["name"],
        "conditions": [condition.text for condition in conditions],
        "host": row["host"],
        "files": list(sources),
    }
    return picked, sources


def table_text(document: dict[str, Any], folder: Path) -> RenderableType:
    """All trials, with the Pareto front marked and first, and the picked one."""
    front = document["front"]
    order = sorted(document["trials"], key=lambda r: (r["name"] not in front, choice.latency(r)))
    batches = "/".join(str(found["batch"]) for found in order[0]["latency"])
    header = ["  λ · ratio · align", "validation", "test", "params", f"ms, batch {batches}", "speed-up"]
    rows = [[("● " if row["name"] in front else "  ") + _place(row), *_cells(row)] for row in order]
    parts: list[RenderableType] = [grid(header, rows, title=document["title"])]
    parts.append(Text("● no other trial is as fast and as accurate (validation accuracy, least batch)"))
    parts += [Text(f"failed: {_place(one)}: {one['error']}") for one in document["failed"]]
    parts += [Text(remark) for remark in document["remarks"]]
    if picked := document["picked"]:
        where = [str(folder / name) for name in picked["files"]]
        files = " and ".join(where[:2]) if where else f"on {picked['host']}, in its trials/{picked['name']}"
        parts.append(Text(f"picked {picked['name']}: {files}"))
    return Group(*parts)


def _place(row: dict[str, Any]) -> str:
    return f"{row['sparsity']:g} · {row['ratio']:g} · {row['align']}"


def _cells(row: Row) -> list[str]:
    times = [f"{'' if one['interval_reached'] else '~'}{one['p50_ms']:.3g}" for one in row["latency"]]
    low, high = row["latency"][0]["speedup_ci95"]
    return [
        percent(row["accuracy"]["validation"]),
        percent(row["accuracy"]["test"]),
        short(row["params"]),
        "/".join(times),
        f"{row['latency'][0]['speedup']:.2f}× ({low:.2f}–{high:.2f})",
    ]
