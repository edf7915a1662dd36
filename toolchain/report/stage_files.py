"""A run made stage by stage, read from its checkpoints and a `bench` result. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.report.headline import pairs
from slimdeploy.toolchain.report.run import Model, Run, read_history, read_model
from slimdeploy.toolchain.report.steps import latency_rows, step_row

DONE = {"train": "trained", "import": "imported", "prune": "pruned", "finetune": "fine-tuned"}
"""Stage that wrote a checkpoint -> name of the step."""


def read_stage_files(paths: Sequence[Path]) -> Run:
    """The run with the checkpoints (at least two, in any order) and the `bench` result in `paths`.

    The original network is the one with the fewest stages in its history, the final one that with the most.
    Raises SlimdeployError if one of these is missing, if the files don't belong to one history, or if the
    result contains other networks.
    """
    files = [path for path in paths if path.suffix != ".json"]
    documents = [path for path in paths if path.suffix == ".json"]
    if len(files) < 2 or len(documents) != 1:
        raise SlimdeployError(
            "give the checkpoints, original and final (and pruned), and one result of slimdeploy bench: "
            "slimdeploy report sparse.safetensors final.safetensors bench.json"
        )
    for path in files:
        if files.count(path) > 1:
            raise SlimdeployError(f"{path} is given twice")
    read = {path: read_model(path) for path in files}
    ordered = sorted(read, key=lambda path: len(read[path].info.provenance))
    first, *between, last = ordered
    original, final = read[first], read[last]
    if original.info.class_names != final.info.class_names:
        raise SlimdeployError(f"{first} and {last} have different classes: they are not from one run")
    cuts = [read[path] for path in between if _stage(read[path]) == "prune"]
    bench = results.read(documents[0], "bench")
    return Run(
        onnx=_measured_files(bench, documents[0], {first: original, last: final}),
        original=original,
        final=final,
        pruned={"pruned": cuts[-1]} if cuts else {},
        stages={
            "train": {"accuracy": _accuracy(original)},
            "pruned": {"accuracy": {"final": _accuracy(cuts[-1]).get("test")} if cuts else {}},
            "finetune": {"accuracy": _accuracy(final) if _stage(final) == "finetune" else {}},
        },
        histories={
            name: read_history(path.with_suffix(".history.jsonl"))
            for name, path in (("sparse", first), ("final", last))
        },
        bench=bench,
        table=_table([read[path] for path in ordered], bench),
    )


def _table(models: Sequence[Model], bench: dict[str, Any]) -> dict[str, Any]:
    """The parts of a run's table that a report uses."""
    steps = []
    for model in models:
        cost = network_cost(model.info.graph, model.info.preprocessing.size)
        step, accuracy = DONE.get(_stage(model), _stage(model)), _accuracy(model).get("test")
        steps.append(step_row(step, accuracy, params=cost.params, macs=cost.macs))
    data = next((e["data"]["name"] for e in models[-1].info.provenance if e.get("data")), None)
    title = models[-1].info.graph.arch + (f" on {data}" if data else "")
    return {"title": title, "rows": [*steps, *latency_rows(bench)], "command": None}


def _measured_files(bench: dict[str, Any], path: Path, models: dict[Path, Model]) -> dict[str, Path]:
    """The ONNX files that were measured; raises SlimdeployError if they are of other networks."""
    if not bench["comparisons"]:
        raise SlimdeployError(
            f"{path} does not compare two models: slimdeploy bench original.onnx final.onnx"
        )
    pair = pairs(bench)[0]
    found = {}
    for (checkpoint, model), (name, row) in zip(
        models.items(), (("original", pair.original), ("final", pair.final)), strict=True
    ):
        params = network_cost(model.info.graph, model.info.preprocessing.size).params
        if row["params"] not in (None, params):
            raise SlimdeployError(
                f"{path}: {row['model']} has {row['params']:,} parameters, {checkpoint} {params:,}: "
                "it isn't the same network"
            )
        found[name] = _found(row, path)
    return found


def _found(row: dict[str, Any], bench: Path) -> Path:
    """Path of the measured file: its original path, or beside the result; it may not exist."""
    named = Path(row["model"])
    for place in (named, bench.parent / named.name):
        if place.is_file() and artifacts.sha256_file(place) == row["sha256"]:
            return place
    return named


def _stage(model: Model) -> str:
    return str(model.info.provenance[-1]["stage"]) if model.info.provenance else "made"


def _accuracy(model: Model) -> dict[str, Any]:
    accuracy = model.info.metrics.get("accuracy")
    return accuracy if isinstance(accuracy, dict) else {}
