"""Time of a training step with the weight gradients of operators/weight_gradient.py, and with oneDNN alone.

    python -m slimdeploy.benchmarks.weight_gradient --output benchmarks/results/weight-gradient.json

Both variants of a step alternate in one process, in reverse order in every second round, on random images.
"""

from __future__ import annotations

import contextlib
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators import weight_gradient
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.training.precision import resolve_precision

CLASSES = 10
COLUMNS = {
    "arch": "network",
    "stem": "its stem",
    "size": "input size, pixels",
    "batch": "images per step",
    "precision": "of the step",
    "onednn_s": "time of a step with oneDNN's weight gradients, s, median over the rounds",
    "product_s": "the same with a matrix product where the output has few pixels",
    "speedup": "median over the rounds of the ratio",
    "low": "smallest ratio of a round",
    "high": "largest",
}
SETTINGS = [
    ("resnet50", "cifar-pool", 32, 128),
    ("resnet50", "cifar-pool", 16, 32),
    ("resnet18", "cifar-pool", 32, 128),
    ("resnet50", "imagenet", 224, 8),
]


@contextlib.contextmanager
def _onednn_alone() -> Iterator[None]:
    chosen = weight_gradient.by_product
    weight_gradient.by_product = lambda *_: False
    try:
        yield
    finally:
        weight_gradient.by_product = chosen


def step_times(
    arch: str, stem: str, size: int, batch: int, precision: str, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of a step with oneDNN's weight gradients and with ours, for each round."""
    network = place(GraphNetwork(build_graph(arch, stem=stem, classes=CLASSES)), "cpu").train()
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    def one(ours: bool) -> float:
        with contextlib.nullcontext() if ours else _onednn_alone():
            return step()

    found = []
    for number in range(rounds + 1):
        seconds = {ours: one(ours) for ours in ((False, True) if number % 2 else (True, False))}
        found.append((seconds[False], seconds[True]))
    return found[1:]  # the first round also allocates


@click.command()
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True)
@click.option("--only", type=click.IntRange(0, len(SETTINGS) - 1), multiple=True, help="Rows of SETTINGS.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(threads: int, rounds: int, only: tuple[int, ...], output: Path) -> None:
    """Measure all settings and write a `table` result."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    for setting in [SETTINGS[index] for index in only] or SETTINGS:
        for precision in dict.fromkeys(("fp32", resolve_precision("auto", "cpu"))):
            times = step_times(*setting, precision, rounds)
            ratios = [theirs / ours for theirs, ours in times]
            medians = [statistics.median(column) for column in zip(*times, strict=True)]
            values = (*setting, precision, *medians, statistics.median(ratios), min(ratios), max(ratios))
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            log(" ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values))
    document = results.document(
        "table",
        command=shlex.join(["python", "-m", "slimdeploy.benchmarks.weight_gradient", *sys.argv[1:]]),
        title=f"A training step on the CPU, {threads} threads: weight gradients by oneDNN, or as a product",
        columns=COLUMNS,
        rows=rows,
    )
    results.write(output, document)


if __name__ == "__main__":
    run_program(main, "weight_gradient")
