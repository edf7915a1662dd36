"""Training speed: slimdeploy's loop, the same loop without one optimisation at a time, a loop with
torchvision transforms and DataLoader, and bare steps on prepared tensors.

    python benchmarks/peers/training.py --output benchmarks/results/training.json

All train the same network with the same optimiser, alternately, a few steps at a time, so that drift of the
machine affects all equally. The bare steps are the limit: forward, backward and optimiser on a batch that is
already cropped, normalised and in the right layout.
"""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.data.augmentation import Augmentation
from slimdeploy.toolchain.data.batches import TrainingBatches
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.launch import cpu_count
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.torchvision import import_torchvision
from slimdeploy.toolchain.training.compiling import compiled
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.precision import autocast, resolve_precision
from slimdeploy.toolchain.training.setup import build_optimizer, build_penalty
from slimdeploy.toolchain.training.step import Objective, TrainingStep

PREPROCESSING = Preprocessing(32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
BARE, OURS, REFERENCE = (
    "bare steps on ready tensors",
    "slimdeploy",
    "torchvision transforms, DataLoader",
)
COLUMNS = {
    "loop": "what trains",
    "images_per_second": "median over the rounds",
    "share_of_bare": "median over the rounds of its speed relative to the bare steps in the same round",
}


@dataclass(frozen=True)
class Task:
    """Input of all loops."""

    split: Split
    batch_size: int
    device: str


@dataclass(frozen=True)
class Tricks:
    """The optimisations of slimdeploy's loop."""

    precision: str = "auto"
    channels_last: bool = True
    fused: bool = True
    batched: bool = True
    """Crop and flip a batch at a time on the device; else image by image, with torchvision."""
    sparsity: float = 1e-4
    compile: bool = False


def slimdeploy_loop(task: Task, tricks: Tricks) -> Iterator[None]:
    """Steps of `slimdeploy train`, with its records."""
    options = TrainOptions(batch_size=task.batch_size, precision=tricks.precision, sparsity=tricks.sparsity)
    batches = TrainingBatches(
        task.split,
        PREPROCESSING,
        batch_size=task.batch_size,
        augmentation=Augmentation(),
        device=task.device,
        seed=0,
    )
    network = _network(task, channels_last=tricks.channels_last)
    step = TrainingStep(
        compiled(network, device=task.device, processes=1) if tricks.compile else network,
        _optimizer(network, options, fused=tricks.fused),
        Objective(options, None, PREPROCESSING),
        build_penalty(network, options, steps_per_epoch=len(batches)),
        precision=resolve_precision(options.precision, task.device),
        device=task.device,
    )
    losses = torch.zeros(len(batches), device=task.device)
    correct = torch.zeros((), dtype=torch.int64, device=task.device)
    for epoch in itertools.count():
        read = batches.epoch(epoch) if tricks.batched else _image_by_image(task)
        for number, (images, labels) in enumerate(read):
            images = images if tricks.channels_last else images.contiguous()
            losses[number], logits = step(images, labels, number)
            correct += (logits.argmax(1) == labels).sum()
            yield


def bare_steps(task: Task) -> Iterator[None]:
    """Steps on one batch that is prepared on the device."""
    step = _BareStep(task)
    images = torch.randn(task.batch_size, 3, 32, 32, device=task.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.from_numpy(task.split.labels[: task.batch_size]).to(task.device)
    while True:
        step(images, labels)
        yield


def dataloader_loop(task: Task) -> Iterator[None]:
    """The loop of the reference implementation: PIL images, torchvision transforms, DataLoader workers."""
    step = _BareStep(task)
    while True:
        for images, labels in _image_by_image(task):
            step(images.to(memory_format=torch.channels_last), labels)
            yield


class _BareStep:
    def __init__(self, task: Task) -> None:
        options = TrainOptions(batch_size=task.batch_size)
        self._network = _network(task, channels_last=True)
        self._optimizer = _optimizer(self._network, options, fused=True)
        self._precision, self._device = resolve_precision(options.precision, task.device), task.device

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        with autocast(self._precision, self._device):
            loss = F.cross_entropy(self._network(images).float(), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()


def _network(task: Task, *, channels_last: bool) -> GraphNetwork:
    network = build_network(build_graph(), seed=0).to(task.device).train()
    return place(network, task.device) if channels_last else network


def _optimizer(network: GraphNetwork, options: TrainOptions, *, fused: bool) -> torch.optim.SGD:
    optimizer = build_optimizer(network, options)
    for group in optimizer.param_groups:
        group["fused"] = fused
    return optimizer


def _prepared_with_torchvision() -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )


def _image_by_image(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a DataLoader with one worker per processor except one; with one processor, without
    workers.
    """
    import_torchvision()
    from PIL import Image
    from torch.utils.data import DataLoader

    prepare = _prepared_with_torchvision()
    images = [Image.fromarray(image) for image in task.split.images]
    pairs = list(zip(images, task.split.labels.tolist(), strict=True))

    def collate(batch: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([prepare(image) for image, _ in batch]), torch.tensor([n for _, n in batch])

    workers = cpu_count() - 1
    loader: Any = DataLoader(
        pairs,  # type: ignore[arg-type]
        task.batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        collate_fn=collate,
    )
    for batch, labels in loader:
        yield batch.to(task.device), labels.to(task.device)


def _loops(task: Task) -> dict[str, Iterator[None]]:
    cuda = task.device == "cuda"
    without = {
        "augmentation image by image": Tricks(batched=False),
        "channels first": Tricks(channels_last=False),
        "optimiser not fused": Tricks(fused=False),
        "no penalty on γ": Tricks(sparsity=0.0),
    }
    if resolve_precision("auto", task.device) == "bf16":
        without["fp32 instead of bf16"] = Tricks(precision="fp32")
    if cuda:
        without["compiled"] = Tricks(compile=True)
    return {
        BARE: bare_steps(task),
        OURS: slimdeploy_loop(task, Tricks()),
        REFERENCE: dataloader_loop(task),
        **{f"{OURS}, {name}": slimdeploy_loop(task, tricks) for name, tricks in without.items()},
    }


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--steps", default=1, show_default=True, help="Steps of each loop in a round.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(rounds: int, steps: int, batch_size: int, output: Path) -> None:
    """Time the loops alternately and write a `table` result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8 * batch_size, 32, 32, 3), dtype=np.uint8)
    task = Task(Split(images, rng.integers(0, 10, len(images))), batch_size, device)
    loops = _loops(task)
    found: dict[str, list[float]] = {name: [] for name in loops}
    for round_number in range(rounds + 1):
        for name, loop in loops.items():
            started = time.perf_counter()
            for _ in range(steps):
                next(loop)
            if device == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first round warms up caches, thread pools and kernels
                found[name].append(steps * batch_size / (time.perf_counter() - started))
    rows = [
        {
            "loop": name,
            "images_per_second": float(np.median(speeds)),
            "share_of_bare": float(np.median(np.divide(speeds, found[BARE]))),
        }
        for name, speeds in found.items()
    ]
    table = results.document(
        "table",
        command=shlex.join(["python", "benchmarks/peers/training.py", *sys.argv[1:]]),
        title=f"ResNet-50, stem cifar-pool, 32×32, batch {batch_size}, on {device} "
        f"({torch.get_num_threads()} threads), {resolve_precision('auto', device)}",
        columns=COLUMNS,
        rows=rows,
    )
    results.write(output, table)
    for row in rows:
        click.echo(f"{row['loop']:<40} {row['images_per_second']:7.1f} images/s   {row['share_of_bare']:.1%}")


if __name__ == "__main__":
    run_program(main, "training")
