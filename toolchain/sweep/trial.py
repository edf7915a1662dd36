"""One point of the space: from training to its row of results.

SWEEP/trained/<training options>/   a sparse training and its export, shared by the points that need it
SWEEP/trials/<point>/               an ordinary run folder, which `slimdeploy report` reads
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
from slimdeploy.toolchain.pipeline.plan import training_inputs
from slimdeploy.toolchain.pipeline.recipe import Recipe
from slimdeploy.toolchain.pipeline.run import RunResult, adopt_original, run_original, run_recipe
from slimdeploy.toolchain.pipeline.start import starting_point
from slimdeploy.toolchain.report.run import read_history, read_model
from slimdeploy.toolchain.sweep.options import SweepOptions
from slimdeploy.toolchain.sweep.space import Point

GAMMA_EDGES = np.linspace(0, 2, 81)
"""Bins of the γ histograms, the same for every λ; larger values are counted in the last one."""


def carry_out(base: Recipe, point: Point, folder: Path, options: SweepOptions) -> dict[str, Any]:
    """Run `base` at `point` in `folder`, up to its bench, and return its row. Finished parts are not
    repeated.

    Raises SlimdeployError like the stages.
    """
    started = time.perf_counter()
    recipe = replace(point.recipe(base), calibrate=None, package=None, report=None)
    original, own = folder / "trained" / training_name(recipe), folder / "trials" / point.name
    original.mkdir(parents=True, exist_ok=True)
    own.mkdir(parents=True, exist_ok=True)
    with exclusive(
        original, str(original), waiting=f"λ {point.sparsity:g} is being trained by another worker: waiting"
    ):
        run_original(
            recipe, original, device=options.device, threads=options.threads, around=_together, held=True
        )
    with exclusive(own, str(own), waiting=f"{point.name} is being run by another worker: waiting"):
        adopt_original(original, own)
        done = run_recipe(
            recipe, own, device=options.device, threads=options.threads, around=_around, held=True
        )
    return {**_row(point, done, folder), "seconds": time.perf_counter() - started}


def training_name(recipe: Recipe) -> str:
    """Name of the folder of everything that doesn't depend on pruning."""
    data, _ = starting_point(recipe)
    facts = [
        data.digest(),
        data.preprocessing.to_json(),
        recipe.network.facts(),
        training_inputs(recipe.train),
        asdict(recipe.export),
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"sparsity-{recipe.train.sparsity:.12g}_{digest[:10]}"


def _around(stage: str) -> AbstractContextManager[Any]:
    """Exclude the other workers of this machine while one of them measures."""
    if stage != "bench":
        return _together(stage)
    waiting = "waiting for the other workers to pause, to measure undisturbed"
    return readers_and_writer(_machine_lock(), alone=True, waiting=waiting)


def _together(stage: str) -> AbstractContextManager[Any]:
    waiting = f"{stage}: waiting while another worker measures"
    return readers_and_writer(_machine_lock(), alone=False, waiting=waiting)


def _machine_lock() -> Path:
    """The lock file shared by all sweep workers of this user on this machine."""
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
        "threads": bench["options"]["threads"],
        "remarks": bench["remarks"] + [remark for row in bench["rows"] for remark in row["remarks"]],
    }


def _latency(bench: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """One batch size: latency of the final network, and its speed-up over the original in the same run."""
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
    """Histogram of |γ| of the prunable channels after sparse training: counts between GAMMA_EDGES."""
    scales = np.abs(read_model(checkpoint).scales)
    counts = np.histogram(np.minimum(scales, GAMMA_EDGES[-1]), GAMMA_EDGES)[0]
    return {
        "edges": [round(float(edge), 6) for edge in GAMMA_EDGES],
        "counts": counts.tolist(),
        "zero_share": float((scales == 0).mean()),
    }


def _curve(path: Path) -> list[list[float]]:
    """Epoch, accuracy on training images and on held-out images."""
    return [[r["epoch"], r["train_accuracy"], r["val_accuracy"]] for r in read_history(path)]


def _shown(path: Path, folder: Path) -> str:
    """Relative to the sweep's folder, whose path may differ between machines."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(folder))
    return os.fspath(path)
