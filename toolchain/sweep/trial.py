"""One point of the space, from training to its row of figures.

SWEEP/trained/<what it was trained with>/   a sparse training and its export, shared by all that need it
SWEEP/trials/<point>/                       an ordinary run folder, which `slimdeploy report` reads
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.locks import exclusive, readers_and_writer
from slimdeploy.toolchain.pipeline.recipe import Recipe
from slimdeploy.toolchain.pipeline.run import RunResult, adopt_original, run_original, run_recipe
from slimdeploy.toolchain.pipeline.start import starting_point
from slimdeploy.toolchain.report.run import read_history, read_model
from slimdeploy.toolchain.sweep.options import SweepOptions
from slimdeploy.toolchain.sweep.space import Point

GAMMA_EDGES = np.linspace(0, 2, 81)
"""Bins of the γ histograms, the same for every λ; what is greater counts in the last."""


def carry_out(base: Recipe, point: Point, folder: Path, options: SweepOptions) -> dict[str, Any]:
    """Run `base` at `point` below `folder`, up to its bench, and return its row. What is done already is not
    repeated.

    Raises SlimdeployError as the stages do.
    """
    started = time.perf_counter()
    recipe = replace(point.recipe(base), calibrate=None, package=None, report=None)
    original, own = folder / "trained" / training_name(recipe), folder / "trials" / point.name
    original.mkdir(parents=True, exist_ok=True)
    own.mkdir(parents=True, exist_ok=True)
    with exclusive(original, str(original), waiting=f"λ {point.sparsity:g} is being trained: waiting for it"):
        run_original(
            recipe, original, device=options.device, threads=options.threads, around=_together, held=True
        )
    with exclusive(own, str(own), waiting=f"{point.name} is being done: waiting for it"):
        adopt_original(original, own)
        done = run_recipe(
            recipe, own, device=options.device, threads=options.threads, around=_around, held=True
        )
    return {**_row(point, done, folder), "seconds": time.perf_counter() - started}


def training_name(recipe: Recipe) -> str:
    """Names the folder of everything that doesn't depend on the pruning."""
    data, _ = starting_point(recipe)
    facts = [
        data.digest(),
        data.preprocessing.to_json(),
        recipe.network.facts(),
        recipe.train.to_json(),
        asdict(recipe.export),
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"sparsity-{recipe.train.sparsity:.12g}_{digest[:10]}"


def _around(stage: str) -> AbstractContextManager[Any]:
    """Nothing else of a sweep runs on this machine while one of its workers measures."""
    if stage != "bench":
        return _together(stage)
    waiting = "waiting for the other workers to pause, to measure undisturbed"
    return readers_and_writer(_machine_lock(), alone=True, waiting=waiting)


def _together(stage: str) -> AbstractContextManager[Any]:
    waiting = f"{stage}: waiting while another worker measures"
    return readers_and_writer(_machine_lock(), alone=False, waiting=waiting)


def _machine_lock() -> Path:
    """The lock file that all sweep workers of this user on this machine share."""
    return Path(tempfile.gettempdir()) / f"slimdeploy-sweep-{os.getuid()}.sqlite"


def _row(point: Point, done: RunResult, folder: Path) -> dict[str, Any]:
    stages, bench = done.stages, done.stages["bench"]
    pruned, tuned = stages["pruned"], stages["finetune"]
    return {
        "name": point.name,
        **point.to_json(),
        "accuracy": {
            "validation": tuned["accuracy"]["val"],
            "test": tuned["accuracy"]["test"],
            "trained": stages["train"]["accuracy"]["test"],
            "cut": pruned["accuracy"]["after"],
            "pruned": pruned["accuracy"]["final"],
        },
        "params": pruned["params"]["after"],
        "macs": pruned["macs"]["after"],
        "original": {"params": pruned["params"]["before"], "macs": pruned["macs"]["before"]},
        "latency": sorted(
            (_latency(bench, row) for row in bench["rows"] if row["model"].endswith("final.onnx")),
            key=lambda one: one["batch"],
        ),
        "gamma": _gamma(done.folder / "sparse.safetensors"),
        "curves": {
            "train": _curve(done.folder / "sparse.history.jsonl"),
            "finetune": _curve(done.folder / "final.history.jsonl"),
        },
        "folder": _shown(done.folder, folder),
        "checkpoint": _shown(done.folder / "final.safetensors", folder),
        "onnx": _shown(done.folder / "final.onnx", folder),
        "host": socket.gethostname(),
        "cpu": bench["machine"]["cpu"],
        "remarks": bench["remarks"] + [remark for row in bench["rows"] for remark in row["remarks"]],
    }


def _latency(bench: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """One batch size: the final network's time, and the speed-up over the original's in the same run."""
    compared = next(
        c for c in bench["comparisons"] if (c["model"], c["batch"]) == (row["model"], row["batch"])
    )
    return {
        "batch": row["batch"],
        "p50_ms": row["latency_ms"]["p50"],
        "ci95_ms": row["latency_ms"]["ci95"],
        "interval_reached": row["interval_reached"],
        "speedup": compared["speedup"],
        "speedup_ci95": compared["ci95"],
    }


def _gamma(checkpoint: Path) -> dict[str, Any]:
    """|γ| of the prunable channels after the sparse training: counts between GAMMA_EDGES."""
    scales = np.abs(read_model(checkpoint).scales)
    counts = np.histogram(np.minimum(scales, GAMMA_EDGES[-1]), GAMMA_EDGES)[0]
    return {
        "edges": [round(float(edge), 6) for edge in GAMMA_EDGES],
        "counts": counts.tolist(),
        "zero_share": float((scales == 0).mean()),
    }


def _curve(path: Path) -> list[list[float]]:
    """Epoch, accuracy on the training images and on the held-out ones."""
    return [[r["epoch"], r["train_accuracy"], r["val_accuracy"]] for r in read_history(path)]


def _shown(path: Path, folder: Path) -> str:
    """Relative to the sweep's folder, which may have another place on another machine."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(folder))
    return os.fspath(path)
