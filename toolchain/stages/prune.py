"""The stage `prune`: a checkpoint in, a smaller one out, with what that did to its accuracy."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, Split, balanced_subset
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint, save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import channel_numbers
from slimdeploy.toolchain.networks.cost import Cost, network_cost
from slimdeploy.toolchain.networks.cutting import pruned_graph
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.progress import working
from slimdeploy.toolchain.pruning.activations import Moments, measure_inputs
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import (
    Budget,
    Scores,
    budget_for,
    choose_channels,
    plan_groups,
    score_channels,
)
from slimdeploy.toolchain.pruning.recalibration import recalibrate
from slimdeploy.toolchain.pruning.surgery import Folding, prune_compensated, prune_network
from slimdeploy.toolchain.stages.train import training_data
from slimdeploy.toolchain.training.continuing import as_before
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.loop import fit
from slimdeploy.toolchain.training.options import TrainOptions

if TYPE_CHECKING:
    from slimdeploy.toolchain.pruning.latency import LatencyBudget

JUDGED_IMAGES = 1024
"""Training images on which recalibration has to lower the loss."""


@dataclass(frozen=True)
class Latency:
    """What a run of the pruned network takes by the latency table, and what it took."""

    predicted_ms: float
    measured_ms: float | None
    not_measured: str | None
    """Why it is predicted only."""


@dataclass(frozen=True)
class PruneResult:
    """What pruning did. `accuracy` is on the test split, and None where no data was given."""

    checkpoint: Path
    sha256: str
    channels: tuple[int, ...]
    before: Cost
    after: Cost
    removed_blocks: tuple[str, ...]
    folding: Folding
    accuracy: dict[str, float] | None
    seconds: float
    """Scoring, selection and surgery; neither reading, evaluation nor writing."""
    latency: Latency | None = None
    """Where milliseconds were asked for."""

    def to_json(self) -> dict[str, Any]:
        document = {
            "checkpoint": str(self.checkpoint),
            "sha256": self.sha256,
            "channels": list(self.channels),
            "params": {"before": self.before.params, "after": self.after.params},
            "macs": {"before": self.before.macs, "after": self.after.macs},
            "padded_macs": {"before": self.before.padded_macs, "after": self.after.padded_macs},
            "removed_blocks": list(self.removed_blocks),
            "folding": asdict(self.folding),
            "seconds": self.seconds,
        }
        if self.latency is not None:
            document["latency"] = asdict(self.latency)
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

    With `data`, the kept channels take over what the removed ones carried, BN statistics are recalibrated,
    both on training images, and the test accuracy is measured at each step. Raises SlimdeployError for an
    output that exists, a budget out of reach, a criterion that needs data where there is none, and data of
    another kind.
    """
    artifacts.check_output(output, force=force)
    parent = load_checkpoint(checkpoint)
    original, size = parent.network, parent.info.preprocessing.size
    dataset = dataset_for(parent.info, data, checkpoint) if data else None
    between = _training_between(options, parent.info, data)
    network, seconds = original, 0.0
    for step in range(1, options.steps + 1):
        last = step == options.steps
        started = time.perf_counter()
        with working("pruning" if options.steps == 1 else f"pruning, step {step} of {options.steps}"):
            cut = _cut(network, original, dataset, options, size, step / options.steps, device)
        seconds += time.perf_counter() - started
        if between and dataset and not last:
            network = cut.network
            _finetune(network, dataset, options, replace(between, seed=options.seed + step), device)
    accuracy = _accuracies(original, network, cut, dataset, options, device) if dataset else None
    metrics = {"accuracy": {"test": accuracy["final"]}} if accuracy else {}
    facts = {"options": asdict(options), "parent": parent.sha256, "data": data.to_json() if data else None}
    pruned = cut.network
    info = parent.info.after("prune", graph=pruned.graph, metrics=metrics, **facts)
    graph = parent.info.graph
    return PruneResult(
        checkpoint=output,
        sha256=save_checkpoint(output, pruned, info),
        channels=channel_numbers(pruned.graph),
        before=network_cost(graph, size, alignment=options.alignment),
        after=network_cost(pruned.graph, size, alignment=options.alignment),
        removed_blocks=_removed_blocks(graph, pruned.graph),
        folding=cut.folding,
        accuracy=accuracy,
        seconds=seconds,
        latency=cut.latency,
    )


def _removed_blocks(before: Graph, after: Graph) -> tuple[str, ...]:
    """The modules whose sum is gone."""
    sums = [node.name for node in before.nodes if node.operator == "add" and node.name not in after.by_name]
    return tuple(name.rpartition(".")[0] or name for name in sums)


@dataclass(frozen=True)
class _Cut:
    """The same selection, cut in three ways: `plain`, with constants folded, and `network`, the one to go
    on with.
    """

    plain: GraphNetwork
    folded: GraphNetwork
    folding: Folding
    network: GraphNetwork
    latency: Latency | None


def _cut(
    network: GraphNetwork,
    original: GraphNetwork,
    dataset: Dataset | None,
    options: PruneOptions,
    size: int,
    progress: float,
    device: str,
) -> _Cut:
    """Select and cut, `progress` (0…1) of the way from the original to the budget."""
    moments = _moments(network, dataset, options, device) if dataset else None
    groups = plan_groups(network.graph, options)
    final = budget_for(original.graph, plan_groups(original.graph, options), options, size)
    own = budget_for(network.graph, groups, options, size)
    full = final.costs.total({g.name: g.width for g in plan_groups(original.graph, options)})
    # Steps of equal ratio: each removes the same share of what is left.
    limit = final.limit if progress == 1 else full * (final.limit / full) ** progress
    scores = score_channels(network, moments, options)
    met = None
    if options.latency_table and progress == 1:
        met = _latency_budget(network.graph, scores, options, own, size)
        limit = met.budget_ms
    kept = choose_channels(network.graph, scores, options, Budget(own.costs, limit, own.unit))
    latency = None
    if met:
        predicted = own.costs.total({name: len(channels) for name, channels in kept.items()})
        latency = Latency(predicted, met.measured_ms, met.not_measured)
    plain = prune_network(network, groups, kept, fold=False)[0]
    folded, folding = prune_network(network, groups, kept, fold=options.fold)
    mended = prune_compensated(network, groups, kept, moments) if moments and options.compensate else folded
    return _Cut(plain, folded, folding, mended, latency)


def _latency_budget(
    graph: Graph, scores: Scores, options: PruneOptions, budget: Budget, size: int
) -> LatencyBudget:
    """The predicted milliseconds that come out as the wanted ones when they are measured."""
    from slimdeploy.toolchain.pruning.latency import budget_for_latency

    assert options.latency_table is not None
    groups = plan_groups(graph, options)

    def plan(limit: float) -> Graph:
        kept = choose_channels(graph, scores, options, Budget(budget.costs, limit, budget.unit))
        return pruned_graph(graph, groups, kept)

    return budget_for_latency(plan, budget.limit, Path(options.latency_table), size, measure=options.measure)


def _moments(network: GraphNetwork, dataset: Dataset, options: PruneOptions, device: str) -> Moments:
    images = balanced_subset(dataset.train, options.statistics_images)
    readers = {name for group in plan_groups(network.graph, options) for name in group.consumers}
    with working("measuring activations"):
        moments = measure_inputs(network, readers, images, dataset.preprocessing, device=device)
    for name, found in moments.items():
        if not all(torch.isfinite(tensor).all() for tensor in vars(found).values()):
            raise SlimdeployError(f"the inputs of {name} overflow float32 on these images: weights too large")
    return moments


def _training_between(
    options: PruneOptions, info: ModelInfo, data: DataOptions | None
) -> TrainOptions | None:
    """What is trained between two steps, but for the seed: as the network was trained. None with one step."""
    if options.steps == 1:
        return None
    if data is None:
        raise SlimdeployError("--steps fine-tunes between the steps: pass --data")
    training = TrainOptions(epochs=options.step_epochs, lr=options.step_lr)
    return as_before(training, info, given=(), data=data.name)


def _finetune(
    network: GraphNetwork, dataset: Dataset, options: PruneOptions, training: TrainOptions, device: str
) -> None:
    images = balanced_subset(dataset.train, options.recalibration_images)
    recalibrate(network, images, dataset.preprocessing, device=device)
    data = training_data(dataset, training)
    with tempfile.TemporaryDirectory() as folder:  # its history and state are of no use afterwards
        fit(network, data, training, output=Path(folder) / "step", device=device, setup={})
    network.eval()


def _accuracies(
    original: GraphNetwork,
    before: GraphNetwork,
    cut: _Cut,
    dataset: Dataset,
    options: PruneOptions,
    device: str,
) -> dict[str, float]:
    """Test accuracy before pruning and after each thing done.

    Leaves `cut.network` recalibrated where that lowers the loss on the training images used: after sparse
    training that drove γ to zero there is nothing to mend, and the statistics of augmented training serve
    better.
    """

    def accuracy(network: GraphNetwork) -> float:
        return evaluate_network(network, dataset.test, dataset.preprocessing, device=device).accuracy

    found = {"before": accuracy(original)}
    if before is not original:
        found["before_last_step"] = accuracy(before)
    found["after"] = accuracy(cut.plain)
    if options.fold:
        found["after_folding"] = accuracy(cut.folded)
    if cut.network is not cut.folded:
        found["after_compensation"] = accuracy(cut.network)
    images = balanced_subset(dataset.train, options.recalibration_images)
    recalibrated = copy.deepcopy(cut.network)
    recalibrate(recalibrated, images, dataset.preprocessing, device=device)
    without = list(found.values())[-1]
    found["after_recalibration"] = found["final"] = accuracy(recalibrated)
    judged = balanced_subset(images, JUDGED_IMAGES)
    if _loss(recalibrated, judged, dataset, device) < _loss(cut.network, judged, dataset, device):
        cut.network.load_state_dict(recalibrated.state_dict())
    else:
        found["final"] = without
    return found


def _loss(network: GraphNetwork, images: Split, dataset: Dataset, device: str) -> float:
    return evaluate_network(network, images, dataset.preprocessing, device=device).loss
