"""Fine-tuning between two steps of pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.training.continuing import as_before
from slimdeploy.toolchain.training.loop import fit
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.training_data import training_data

Between = Callable[[GraphNetwork, int], None]
"""Trains the network in place after step 1, 2, …."""


def fine_tuning(
    info: ModelInfo, dataset: Dataset, options: PruneOptions, *, device: str, data: str = ""
) -> Between:
    """Fine-tune on `dataset` with the options of the last training in `info`. `data` is the name for --data:
    if the network was trained on it, the same validation images are used.
    """
    training = TrainOptions(epochs=options.step_epochs, lr=options.step_lr)
    training = as_before(training, info, given=(), data=data)

    def train(network: GraphNetwork, step: int) -> None:
        own = replace(training, seed=options.seed + step)
        fit(network, training_data(dataset, training), own, device=device)

    return train
