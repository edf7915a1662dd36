"""The stage `prune`: a checkpoint in, a smaller one out, with what that did to its accuracy."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.checkpoint import load_checkpoint, save_checkpoint
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, balanced_subset
from slimdeploy.toolchain.networks.cost import Cost, network_cost
from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.pruning.criteria import channel_scores
from slimdeploy.toolchain.pruning.groups import channel_groups
from slimdeploy.toolchain.pruning.recalibration import recalibrate
from slimdeploy.toolchain.pruning.selection import select_by_ratio
from slimdeploy.toolchain.pruning.surgery import Folding, prune_network
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.stage import dataset_for


@dataclass(frozen=True)
class PruneOptions:
    """What to remove and how."""

    ratio: float
    """Share of all prunable channels."""
    criterion: str = "gamma"
    min_channels: int = 3
    fold: bool = True
    recalibration_images: int = 5120


@dataclass(frozen=True)
class PruneResult:
    """What pruning did. `accuracy` is on the test split, and None where no data was given."""

    checkpoint: Path
    sha256: str
    channels: tuple[int, ...]
    before: Cost
    after: Cost
    folding: Folding
    accuracy: dict[str, float] | None
    seconds: float
    """Scoring, selection and surgery; neither reading, evaluation nor writing."""

    def to_json(self) -> dict[str, Any]:
        document = {
            "checkpoint": str(self.checkpoint),
            "sha256": self.sha256,
            "channels": list(self.channels),
            "params": {"before": self.before.params, "after": self.after.params},
            "macs": {"before": self.before.macs, "after": self.after.macs},
            "padded_macs": {"before": self.before.padded_macs, "after": self.after.padded_macs},
            "folding": asdict(self.folding),
            "seconds": self.seconds,
        }
        return document if self.accuracy is None else {**document, "accuracy": self.accuracy}


def prune_stage(
    checkpoint: Path,
    *,
    options: PruneOptions,
    output: Path,
    data: DataOptions | None = None,
    device: str = "cpu",
    force: bool = False,
) -> PruneResult:
    """Prune `checkpoint` and write the smaller network to `output`.

    With `data`, the BN statistics are recalibrated on its training images, and the accuracy is measured at
    each step. Raises SlimdeployError for an output that exists, unusable options or data of another kind.
    """
    artifacts.check_output(output, force=force)
    parent = load_checkpoint(checkpoint)
    dataset = dataset_for(parent.info, data, checkpoint) if data else None
    started = time.perf_counter()
    groups = channel_groups(parent.info.spec)
    scores = channel_scores(parent.network, groups, options.criterion)
    kept = select_by_ratio(scores, options.ratio, min_channels=options.min_channels)
    pruned, folding = prune_network(parent.network, groups, kept, fold=options.fold)
    seconds = time.perf_counter() - started
    accuracy = None
    if dataset:
        plain = prune_network(parent.network, groups, kept, fold=False)[0] if options.fold else None
        accuracy = _accuracies(parent.network, plain, pruned, dataset, options, device)
    metrics = {"accuracy": {"test": accuracy["after_recalibration"]}} if accuracy else {}
    facts = {"options": asdict(options), "parent": parent.sha256, "data": data.to_json() if data else None}
    info = parent.info.after("prune", spec=pruned.spec, metrics=metrics, **facts)
    size = info.preprocessing.size
    return PruneResult(
        checkpoint=output,
        sha256=save_checkpoint(output, pruned, info),
        channels=pruned.spec.channels.flat(),
        before=network_cost(parent.info.spec, size),
        after=network_cost(pruned.spec, size),
        folding=folding,
        accuracy=accuracy,
        seconds=seconds,
    )


def _accuracies(
    original: ResNet,
    plain: ResNet | None,
    pruned: ResNet,
    dataset: Dataset,
    options: PruneOptions,
    device: str,
) -> dict[str, float]:
    """Test accuracy before pruning, after the cut, after folding and after recalibration (`pruned` ends
    so).
    """

    def accuracy(network: ResNet) -> float:
        return evaluate_network(network, dataset.test, dataset.preprocessing, device=device).accuracy

    found = {"before": accuracy(original), "after": accuracy(plain or pruned)}
    if plain:
        found["after_folding"] = accuracy(pruned)
    images = balanced_subset(dataset.train, options.recalibration_images)
    recalibrate(pruned, images, dataset.preprocessing, device=device)
    found["after_recalibration"] = accuracy(pruned)
    return found
