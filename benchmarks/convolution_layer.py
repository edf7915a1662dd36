"""Time of a training step, and of inference, with operators/convolution_layer.py and with oneDNN alone.

    python -m slimdeploy.benchmarks.convolution_layer --output benchmarks/results/convolution-layer.json

Both variants of a step alternate in one process, in reverse order in every second round, on random images.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.operators.convolution_layer import Convolution
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.training.precision import resolve_precision

CLASSES = 10
COLUMNS = {
    "arch": "network",
    "stem": "its stem",
    "size": "input size, pixels",
    "batch": "images",
    "work": "a training step, or inference",
    "precision": "of the arithmetic",
    "onednn_s": "time for the batch with oneDNN alone, s, median over the rounds",
    "product_s": "the same with matrix products where they are faster",
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


def times(
    arch: str, stem: str, size: int, batch: int, work: str, precision: str, rounds: int
) -> list[tuple[float, float]]:
    """Seconds for a batch with oneDNN alone and with our products, for each round."""
    network = place(GraphNetwork(build_graph(arch, stem=stem, classes=CLASSES)), "cpu")
    network.train(work == "training")
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        network(images)

    def one(ours: bool) -> float:
        started = time.perf_counter()
        forward = Convolution.forward if ours else torch.nn.Conv2d.forward
        with mock.patch.object(Convolution, "forward", forward):
            train() if work == "training" else infer()
        return time.perf_counter() - started

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
        precisions = dict.fromkeys(("fp32", resolve_precision("auto", "cpu")))
        for work, precision in [("inference", "fp32"), *(("training", each) for each in precisions)]:
            seconds = times(*setting, work, precision, rounds)
            ratios = [theirs / ours for theirs, ours in seconds]
            medians = [statistics.median(column) for column in zip(*seconds, strict=True)]
            spread = (statistics.median(ratios), min(ratios), max(ratios))
            values = (*setting, work, precision, *medians, *spread)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            log(" ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values))
    document = results.document(
        "table",
        command=shlex.join(["python", "-m", "slimdeploy.benchmarks.convolution_layer", *sys.argv[1:]]),
        title=f"Training and inference on the CPU, {threads} threads: oneDNN alone, or with matrix products",
        columns=COLUMNS,
        rows=rows,
    )
    results.write(output, document)


if __name__ == "__main__":
    run_program(main, "convolution_layer")
