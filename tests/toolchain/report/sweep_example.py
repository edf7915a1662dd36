"""A `sweep` document with eight made-up trials on two machines, for tests of what is made from one."""

from __future__ import annotations

from itertools import product
from typing import Any

from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.sweep.choice import pareto_front
from slimdeploy.toolchain.sweep.space import Point

EDGES = [i / 40 for i in range(81)]


def _trial(number: int, sparsity: float, ratio: float, align: int) -> dict[str, Any]:
    point = Point(sparsity, ratio, align)
    accuracy = 0.95 - 0.2 * ratio + 20 * sparsity
    time = 2.0 - 1.5 * ratio - 0.01 * align
    counts = [900, 50, *[0] * 78] if sparsity else [0] * 30 + [19] * 50
    curve = [[epoch, 1 - 0.9 / epoch, 0.9 - 0.8 / epoch] for epoch in range(1, 5)]
    return {
        "name": point.name,
        "number": number,
        **point.to_json(),
        "accuracy": {"validation": accuracy, "test": accuracy - 0.01, "trained": 0.9,
                     "cut": 0.9 - ratio * 0.8, "pruned": accuracy - 0.1},
        "params": round(4e6 * (1 - ratio)),
        "macs": round(8e7 * (1 - ratio)),
        "original": {"params": 4_000_000, "macs": 80_000_000},
        "latency": [
            {"batch": batch, "p50_ms": time * batch, "ci95_ms": [0.9 * time * batch, 1.1 * time * batch],
             "interval_reached": batch == 1, "speedup": 4 / time, "speedup_ci95": [3.9 / time, 4.1 / time]}
            for batch in (1, 64)
        ],
        "gamma": {"edges": EDGES, "counts": counts, "zero_share": 0.8 if sparsity else 0.0},
        "curves": {"train": curve, "finetune": curve[:2]},
        "folder": f"trials/{point.name}",
        "checkpoint": f"trials/{point.name}/final.safetensors",
        "onnx": f"trials/{point.name}/final.onnx",
        "host": f"machine{number % 2}",
        "cpu": f"CPU {number % 2}",
        "seconds": 12.5,
        "remarks": [],
    }  # fmt: skip


TRIALS = [_trial(i, *values) for i, values in enumerate(product((0.0, 1e-3), (0.5, 0.7), (1, 8)))]
FRONT = [trial["name"] for trial in pareto_front(TRIALS)]


def document() -> dict[str, Any]:
    failed = Point(0.0, 0.9, 8)
    return results.document(
        "sweep",
        command="slimdeploy sweep digits --sparsity 0,1e-3 --ratio 0.5,0.7,0.9 --align 1,8",
        title="digits: resnet18, stem cifar-pool, on digits",
        recipe="digits",
        study={"name": "digits", "storage": "postgresql+psycopg://me:***@host/sweeps", "method": "grid"},
        space={"sparsity": [0.0, 1e-3], "ratio": [0.5, 0.7, 0.9], "align": [1, 8]},
        trials=TRIALS,
        failed=[{"name": failed.name, **failed.to_json(), "error": "the disk is full"}],
        front=FRONT,
        picked={"name": Point(1e-3, 0.5, 8).name, "conditions": ["latency<=1ms"], "host": "machine1",
                "files": []},
        remarks=["the trials were timed on different machines (CPU 0; CPU 1): compare their speed-ups, not "
                 "their milliseconds"],
    )  # fmt: skip
