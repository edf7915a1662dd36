"""What each trick of the training loop is worth: the loop as it is, and without one trick at a time.

    python benchmarks/peers/training_tricks.py --output benchmarks/results/training-tricks.json

All take the same steps on the same network, in turn: a machine whose speed drifts weighs on all alike.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from slimdeploy.benchmarks import results
from slimdeploy.toolchain.data.batches import Augmentation, Normalise, TrainingBatches
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.torchvision import import_torchvision
from slimdeploy.toolchain.model_info import Preprocessing
from slimdeploy.toolchain.networks.resnet import build_network
from slimdeploy.toolchain.networks.spec import network_spec
from slimdeploy.toolchain.training.compiling import compiled
from slimdeploy.toolchain.training.loop import build_optimizer, build_penalty
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.precision import resolve_precision
from slimdeploy.toolchain.training.step import Objective, TrainingStep

PREPROCESSING = Preprocessing(32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
COLUMNS = {
    "loop": "the loop, or what it is without",
    "ms_per_step": "median over the rounds",
    "share_of_all": "median over the rounds of its speed over that of the loop with all in the same round",
}


@dataclass(frozen=True)
class Setup:
    """Which tricks are in force."""

    precision: str = "auto"
    channels_last: bool = True
    batched: bool = True
    """Augmentation of a batch at a time, on the device; else image by image, by torchvision."""
    fused: bool = True
    sparsity: float = 1e-4
    compile: bool = False


SETUPS = {
    "all": Setup(),
    "float32 instead of bf16": Setup(precision="fp32"),
    "channels first": Setup(channels_last=False),
    "augmentation image by image": Setup(batched=False),
    "optimiser not fused": Setup(fused=False),
    "no proximal step": Setup(sparsity=0.0),
}


class Loop:
    """A loop set up as `setup` says, to be timed again and again."""

    def __init__(self, setup: Setup, split: Split, *, batch_size: int, device: str) -> None:
        options = TrainOptions(batch_size=batch_size, precision=setup.precision, sparsity=setup.sparsity)
        network = build_network(network_spec(), seed=0).to(device)
        if setup.channels_last:
            network.place(device)
        self._setup, self._split, self._device = setup, split, device
        self._batches = TrainingBatches(
            split, PREPROCESSING, batch_size=batch_size, augmentation=Augmentation(), device=device, seed=0
        )
        optimizer = build_optimizer(network, options)
        for group in optimizer.param_groups:
            group["fused"] = setup.fused
        model = compiled(network, device=device, processes=1) if setup.compile else network
        self._step = TrainingStep(
            model.train(),
            optimizer,
            Objective(options, None, PREPROCESSING),
            build_penalty(network, options, steps_per_epoch=len(self._batches)),
            precision=resolve_precision(setup.precision, device),
            device=device,
        )

    def ms_per_step(self) -> float:
        """One epoch of the split, in ms a step."""
        started, steps = time.perf_counter(), 0
        for images, labels in self._epoch():
            self._step(images, labels, steps)
            steps += 1
        if self._device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3 / steps

    def _epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches.epoch(0) if self._setup.batched else self._image_by_image():
            yield images if self._setup.channels_last else images.contiguous(), labels

    def _image_by_image(self) -> Iterator[tuple[Tensor, Tensor]]:
        import_torchvision()
        from torchvision.transforms import v2

        prepare = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
        normalise = Normalise(PREPROCESSING, self._device)
        size = self._batches.batch_size
        for start in range(0, len(self._split) - size + 1, size):
            pixels = torch.from_numpy(self._split.images[start : start + size]).permute(0, 3, 1, 2)
            images = torch.stack([prepare(image) for image in pixels]).permute(0, 2, 3, 1)
            labels = torch.from_numpy(self._split.labels[start : start + size])
            yield normalise(images.to(self._device)), labels.to(self._device)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=2, show_default=True, help="Steps of each loop in a round.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(rounds: int, steps: int, batch_size: int, output: Path) -> None:
    """Time the loop with all tricks and without each in turn, and write a `table` result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * batch_size, 32, 32, 3), dtype=np.uint8)
    split = Split(images, rng.integers(0, 10, len(images)))
    setups = SETUPS | ({"compiled": Setup(compile=True)} if device == "cuda" else {})
    loops = {name: Loop(s, split, batch_size=batch_size, device=device) for name, s in setups.items()}
    found: dict[str, list[float]] = {name: [] for name in loops}
    for round_number in range(rounds + 1):
        for name, loop in loops.items():
            ms = loop.ms_per_step()
            if round_number:  # the first brings caches, thread pools and kernels
                found[name].append(ms)
    rows = [
        {
            "loop": name,
            "ms_per_step": float(np.median(times)),
            "share_of_all": float(np.median(np.divide(found["all"], times))),
        }
        for name, times in found.items()
    ]
    table = results.document(
        "table",
        command=shlex.join(["python", "benchmarks/peers/training_tricks.py", *sys.argv[1:]]),
        title=f"ResNet-50, stem cifar-pool, 32×32, batch {batch_size}, on {device}",
        columns=COLUMNS,
        rows=rows,
    )
    results.write(output, table)
    for row in rows:
        click.echo(f"{row['loop']:<30} {row['ms_per_step']:8.1f} ms a step   {row['share_of_all']:.1%}")


if __name__ == "__main__":
    main()
