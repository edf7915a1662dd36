"""Training runs of a second: what they start from, and how to break them off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tiny import PREPROCESSING, learnable_split
from torch.optim.optimizer import register_optimizer_step_pre_hook

from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.training.loop import TrainingData, fit
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions

DATA = TrainingData(learnable_split(20), learnable_split(6, seed=1), PREPROCESSING)
OPTIONS = TrainOptions(epochs=4, batch_size=16, lr=0.05, sparsity=1e-2, crop_pad=1, precision="fp32")
STEPS = 3
"""In an epoch: 60 images, 16 a step."""
SPEC = build_graph("tiny", stem="cifar", classes=3)


def run(
    output: Path,
    options: TrainOptions = OPTIONS,
    *,
    resume: bool = False,
    network: GraphNetwork | None = None,
) -> tuple[GraphNetwork, list[EpochRecord]]:
    """Train a fresh tiny network, or `network`, on DATA."""
    network = network or build_network(SPEC, seed=options.seed)
    setup = options.to_json()
    return fit(network, DATA, options, output=output, device="cpu", setup=setup, resume=resume)


def train_arguments(folder: Path, output: Path, *more: object, epochs: int = 2) -> list[object]:
    """The words of a `slimdeploy train` of a tiny network on an image folder."""
    return ["train", "--arch", "tiny", "--stem", "cifar", "--data", f"folder:{folder}", "--epochs", epochs,
            "--batch-size", 16, "--lr", 0.05, "--sparsity", 0.01, "--precision", "fp32", "--device", "cpu",
            "-o", output, *more]  # fmt: skip


def untimed(history: list[EpochRecord]) -> list[EpochRecord]:
    """The history but for the speed."""
    return [replace(record, images_per_second=0.0) for record in history]


def same(one: GraphNetwork, other: GraphNetwork) -> bool:
    """Whether two networks hold the same bits."""
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


class Stopped(Exception):
    """What takes the place of a crash."""


@contextlib.contextmanager
def at_step(number: int, act: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Inside, `act` is called before the optimiser's step of that number (from 1, over all epochs)."""
    done = [0]

    def hook(optimizer: torch.optim.Optimizer, arguments: object, options: object) -> None:
        done[0] += 1
        if done[0] == number:
            act(optimizer)

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def stop(optimizer: torch.optim.Optimizer) -> None:
    """For `at_step`."""
    raise Stopped
