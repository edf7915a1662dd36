"""`slimdeploy.prune`: remove channels of a network."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from slimdeploy.toolchain.data.dataset import Dataset
from slimdeploy.toolchain.data.feed import Batch
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.fine_tuning import Between, fine_tuning
from slimdeploy.toolchain.library.from_module import checkpoint_for
from slimdeploy.toolchain.library.keywords import takes
from slimdeploy.toolchain.library.prune_feeds import PruningFeeds, pruning_feeds
from slimdeploy.toolchain.library.prune_result import PruneResult
from slimdeploy.toolchain.library.prune_step import Cut, cut_network
from slimdeploy.toolchain.models.checkpoint import Checkpoint
from slimdeploy.toolchain.networks.architectures import channel_numbers
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.progress import log, working
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.recalibration import recalibrate
from slimdeploy.toolchain.runtime.torch_device import device_for
from slimdeploy.toolchain.training.evaluation import evaluate_feed
from slimdeploy.toolchain.training.removed import removed_channels


@takes(PruneOptions)
def prune(
    network: Checkpoint | nn.Module,
    *,
    data: Dataset | Iterable[Batch] | None = None,
    test: Iterable[Batch] | None = None,
    size: int | None = None,
    device: str | torch.device | None = None,
    between: Between | None = None,
    provenance: dict[str, Any] | None = None,
    options: PruneOptions,
) -> PruneResult:
    """Remove the least important channels of `network` until one target is met: `ratio`, `params`, `macs` or
    `latency_ms`. `network` itself is not changed.

    With `data`, the next layers are refitted to the kept channels and BN statistics are recalibrated, both on
    these images. Without `data`, channels are only removed.

    Args:
        network: A checkpoint, or a module that takes images (N, C, size, size) float32 and returns
            logits (N, classes).
        data: A dataset, or batches that can be iterated repeatedly (a DataLoader, a list), shuffled:
            images (N, C, size, size) float32, normalised, and labels (N,).
        test: Batches in the same form, to report accuracies on. Default: the test images of a dataset.
        size: Side of the images in pixels. Required for a module.
        device: Device to compute on, e.g. `cuda`. Default: the network's device.
        between: With `steps` above 1, called with the network and the number of the step to train it in
            place. Default: fine-tuning on the dataset.
        provenance: Further entries for the provenance in the pruned checkpoint.

    Returns:
        The pruned network, in eval mode, with its costs and accuracies before and after.

    Raises:
        SlimdeployError: A target out of reach (the message names the smallest network that the other settings
            allow), a criterion whose data or γ are missing, invalid options or invalid data.
    """
    if test is not None and data is None:
        raise SlimdeployError("`test` needs `data`: without it nothing is evaluated")
    start = checkpoint_for(network, data, size=size)
    original = copy.deepcopy(start.network).eval()
    device = device_for(original, device)
    feeds = pruning_feeds(data, test, start.info, options, device=device) if data is not None else None
    if between is not None and options.steps == 1:
        raise SlimdeployError("`between` trains between steps: it needs `steps` above 1")
    if options.steps > 1 and between is None:
        if not isinstance(data, Dataset):
            also = " as a Dataset, or a function `between` that trains" if data is not None else ""
            raise SlimdeployError(f"`steps` fine-tunes between the steps: pass `data`{also}")
        between = fine_tuning(start.info, data, options, device=device)
    size = start.info.preprocessing.size
    removed = removed_channels(start.info.provenance)
    last, cut, seconds = _in_steps(original, feeds, options, size, between, device, removed)
    accuracy = _finished(original, last, cut, feeds, options, device) if feeds else None
    pruned, graph = cut.network, start.info.graph
    info = start.info.after(
        "prune",
        graph=pruned.graph,
        metrics={"accuracy": {"test": accuracy["final"]}} if accuracy else {},
        options=asdict(options),
        parent=start.sha256,
        **(provenance or {"data": None}),
    )
    if pruned.graph == graph and options.ratio != 0:
        if removed:
            why = f"training has removed {removed:,} channels already"
        elif options.ratio:
            why = f"`ratio` {options.ratio:g} is less than one step of `align` {options.alignment} channels"
        else:
            why = "the network meets the target already"
        log(f"nothing left to prune: {why}")
    return PruneResult(
        checkpoint=Checkpoint(pruned, info, ""),
        channels=channel_numbers(pruned.graph),
        before=network_cost(graph, size, alignment=options.alignment),
        after=network_cost(pruned.graph, size, alignment=options.alignment),
        removed_blocks=_removed_blocks(graph, pruned.graph),
        folding=cut.folding,
        accuracy=accuracy,
        seconds=seconds,
        latency=cut.latency,
        removed_in_training=removed,
    )


def _in_steps(
    original: GraphNetwork,
    feeds: PruningFeeds | None,
    options: PruneOptions,
    size: int,
    between: Between | None,
    device: str,
    removed: int,
) -> tuple[GraphNetwork, Cut, float]:
    """The network before the last step, the result of that step, and the duration of all cuts in seconds."""
    network, seconds = original, 0.0
    for step in range(1, options.steps + 1):
        started = time.perf_counter()
        with working("pruning" if options.steps == 1 else f"pruning, step {step} of {options.steps}"):
            progress = step / options.steps
            cut = cut_network(network, original, feeds, options, size, progress, device, removed=removed)
        seconds += time.perf_counter() - started
        if between and step < options.steps:
            network = cut.network
            if feeds:
                recalibrate(network, feeds.recalibration, device=device)
            between(network, step)
            network.eval()
    return network, cut, seconds


def _finished(
    original: GraphNetwork,
    before: GraphNetwork,
    cut: Cut,
    feeds: PruningFeeds,
    options: PruneOptions,
    device: str,
) -> dict[str, float] | None:
    """Recalibrate `cut.network` if that improves it on training images. After sparse training, where γ is
    zero already, it may not: the statistics of augmented training can be better.

    Returns the test accuracy before pruning and after each change, if there are test images.
    """
    stages = {"before": original}
    if before is not original:
        stages["before_last_step"] = before
    stages["after"] = cut.plain
    if options.fold:
        stages["after_folding"] = cut.folded
    if cut.network is not cut.folded:
        stages["after_compensation"] = cut.network
    recalibrated = stages["after_recalibration"] = copy.deepcopy(cut.network)
    recalibrate(recalibrated, feeds.recalibration, device=device)
    accuracy = {name: _accuracy(stage, feeds, device) for name, stage in stages.items()} if feeds.test else {}
    without = list(accuracy.values())[-2:-1]
    better = _quality(recalibrated, feeds, device) > _quality(cut.network, feeds, device)
    if better:
        cut.network.load_state_dict(recalibrated.state_dict())
    if not accuracy:
        return None
    return {**accuracy, "final": accuracy["after_recalibration"] if better else without[0]}


def _accuracy(network: GraphNetwork, feeds: PruningFeeds, device: str) -> float:
    assert feeds.test is not None
    return evaluate_feed(network, feeds.test, device=device).accuracy


def _quality(network: GraphNetwork, feeds: PruningFeeds, device: str) -> tuple[float, float]:
    """Accuracy on training images, then the negative loss. A network that pruning has damaged can have the
    lower loss at the lower accuracy, because it is less confident.
    """
    found = evaluate_feed(network, feeds.judged, device=device)
    return found.accuracy, -found.loss


def _removed_blocks(before: Graph, after: Graph) -> tuple[str, ...]:
    """The modules that were replaced because their sum was removed."""
    sums = [node.name for node in before.nodes if node.operator == "add" and node.name not in after.by_name]
    return tuple(name.rpartition(".")[0] or name for name in sums)
