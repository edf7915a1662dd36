"""Prune a checkpoint with Torch-Pruning, so that `slimdeploy finetune` can go on with it.

    pip install torch-pruning==1.6.0
    python -m slimdeploy.benchmarks.peers.torch_pruning_cut original.safetensors --importance group-norm \\
        --macs 64M --data folder:data/cifar10-jpeg -o peer.safetensors

The widths are multiples of 8, and the BN statistics are recalibrated on 5,120 training images.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from slimdeploy.benchmarks.peers.pruner_contenders import Task, by_torch_pruning
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.commands.flags import Written
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.pruning.options import AMOUNT
from slimdeploy.toolchain.runtime.torch_device import torch_device

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--importance", type=click.Choice(["BN-scale", "group-norm"]), required=True)
@click.option("--macs", type=Written(AMOUNT), required=True, help="Maximum multiply-accumulates per image.")
@click.option("--data", required=True)
@click.option("--size", type=int, help="Input size of the network.")
@click.option("--device", default="auto", show_default=True)
@click.option("-o", "--output", type=PATH, required=True)
def main(
    checkpoint: Path, importance: str, macs: float, data: str, size: int | None, device: str, output: Path
) -> None:
    """Write the pruned CHECKPOINT, and print its accuracy and size as JSON."""
    before = load_checkpoint(checkpoint).info
    size = size or before.preprocessing.size
    task = Task(checkpoint, DataOptions(data, size=size), 0, Path(), size, torch_device(device))
    found = by_torch_pruning(importance, 8, macs)(task, output)
    costs = [network_cost(graph, size) for graph in (before.graph, load_checkpoint(output).info.graph)]
    sizes = {
        key: dict(zip(("before", "after"), (getattr(cost, key) for cost in costs), strict=True))
        for key in ("params", "macs")
    }
    accuracy = {"after": found["cut"], "final": found["recalibrated"]}
    click.echo(json.dumps({"accuracy": accuracy, **sizes, "seconds": found["seconds"]}))


if __name__ == "__main__":
    run_program(main, "torch_pruning_cut")
