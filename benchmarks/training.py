"""Training speed: slimdeploy's loop, a torchvision-transforms + DataLoader loop, and bare steps on ready
tensors.

    python -m slimdeploy.benchmarks.training --output benchmarks/results/training.json

All three train the same network with the same arithmetic, in turn, so that a machine whose speed drifts
weighs on all alike. The bare steps are the limit: batches already cropped, normalised and laid out, nothing
but forward, backward and the optimiser.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F

from slimdeploy.benchmarks import results
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.data.torchvision import import_torchvision
from slimdeploy.toolchain.model_info import Preprocessing
from slimdeploy.toolchain.networks.resnet import build_network
from slimdeploy.toolchain.networks.spec import network_spec
from slimdeploy.toolchain.training.loop import TrainingData, build_optimizer, fit
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.precision import autocast, resolve_precision

PREPROCESSING = Preprocessing(32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
COLUMNS = {
    "loop": "what trains",
    "images_per_second": "median over the rounds",
    "share_of_bare": "median over the rounds of its speed over the bare steps' in the same round",
}


def slimdeploy_loop(split: Split, options: TrainOptions, device: str) -> float:
    """Images/s of one epoch of `fit`, as its own history tells."""
    data = TrainingData(split, split.take(np.arange(options.batch_size)), PREPROCESSING)
    with tempfile.TemporaryDirectory() as folder:
        network = build_network(network_spec(), seed=0)
        history = fit(network, data, options, output=Path(folder) / "x", device=device, setup={})
    return history[0].images_per_second


def bare_steps(split: Split, options: TrainOptions, device: str) -> float:
    """Images/s of steps on one batch that is ready on the device."""
    step = _stepper(options, device)
    images = torch.randn(options.batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.from_numpy(split.labels[: options.batch_size]).to(device)
    return _timed(
        lambda _: step(images, labels), len(split) // options.batch_size, options.batch_size, device
    )


def dataloader_loop(split: Split, options: TrainOptions, device: str) -> float:
    """Images/s of the loop of the reference reports: PIL images, torchvision transforms, DataLoader
    workers.
    """
    import_torchvision()
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )
    pairs = list(zip(map(Image.fromarray, split.images), split.labels.tolist(), strict=True))

    def collate(batch: list[tuple[Any, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([prepare(image) for image, _ in batch]), torch.tensor([n for _, n in batch])

    loader: DataLoader[Any] = DataLoader(
        pairs,  # type: ignore[arg-type]
        options.batch_size,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        collate_fn=collate,
    )
    step, batches = _stepper(options, device), iter(loader)

    def one(_: int) -> None:
        images, labels = next(batches)
        step(images.to(device).to(memory_format=torch.channels_last), labels.to(device))

    return _timed(one, len(split) // options.batch_size, options.batch_size, device)


def _stepper(options: TrainOptions, device: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    network = build_network(network_spec(), seed=0).place(device).train()
    optimizer = build_optimizer(network, options)
    precision = resolve_precision(options.precision, device)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with autocast(precision, device):
            loss = F.cross_entropy(network(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _timed(step: Callable[[int], None], steps: int, batch_size: int, device: str) -> float:
    started = time.perf_counter()
    for i in range(steps):
        step(i)
    if device == "cuda":
        torch.cuda.synchronize()
    return steps * batch_size / (time.perf_counter() - started)


LOOPS = {
    "bare steps on ready tensors": bare_steps,
    "slimdeploy": slimdeploy_loop,
    "torchvision transforms, DataLoader": dataloader_loop,
}


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--steps", default=8, show_default=True, help="Steps of each loop in a round.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(rounds: int, steps: int, batch_size: int, output: Path) -> None:
    """Time the three loops in turn and write a `table` result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * batch_size, 32, 32, 3), dtype=np.uint8)
    split = Split(images, rng.integers(0, 10, len(images)))
    options = TrainOptions(epochs=1, batch_size=batch_size, sparsity=1e-4)
    for loop in LOOPS.values():  # once unmeasured: caches, thread pools, kernels
        loop(split.take(np.arange(2 * batch_size)), options, device)
    speeds: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(rounds):
        for name, loop in LOOPS.items():
            speeds[name].append(loop(split, options, device))
    bare = speeds["bare steps on ready tensors"]
    rows = [
        {
            "loop": name,
            "images_per_second": float(np.median(found)),
            "share_of_bare": float(np.median(np.divide(found, bare))),
        }
        for name, found in speeds.items()
    ]
    table = results.document(
        "table",
        command=shlex.join(["python", "-m", "slimdeploy.benchmarks.training", *sys.argv[1:]]),
        title=f"ResNet-50, stem cifar-pool, 32×32, batch {batch_size}, on {device}",
        columns=COLUMNS,
        rows=rows,
    )
    results.write(output, table)
    for row in rows:
        click.echo(f"{row['loop']:<36} {row['images_per_second']:7.1f} images/s   {row['share_of_bare']:.1%}")


if __name__ == "__main__":
    main()
