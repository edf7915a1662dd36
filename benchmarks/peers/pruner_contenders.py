"""The contenders of pruners.py, one function each: slimdeploy, Torch-Pruning and a plain global threshold.

A new one is one more function under `@contender`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, balanced_subset
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.fitting import classifier_of, fit_to_tensors
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.criterion import Evidence, channel_scores
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.recalibration import recalibrate, shuffled
from slimdeploy.toolchain.pruning.selection import best_channels
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.stages.prune import prune_stage
from slimdeploy.toolchain.training.evaluation import evaluate_network

RECALIBRATION_IMAGES = 5120
RATIOS = 2000
"""Torch-Pruning's ratio is searched in steps of 1 / RATIOS: where most channels go, a coarser step misses the
budget by far.
"""


@dataclass(frozen=True)
class Task:
    """Input of every contender."""

    source: Path
    data: DataOptions
    params: float
    latency_table: Path
    size: int = 32
    device: str = "cpu"


Contender = Callable[[Task, Path], dict[str, float]]
"""Writes the pruned, recalibrated checkpoint to the path; returns accuracies and seconds."""

CONTENDERS: dict[str, Contender] = {}


def contender(name: str) -> Callable[[Contender], Contender]:
    def register(function: Contender) -> Contender:
        CONTENDERS[name] = function
        return function

    return register


def by_slimdeploy(options_for: Callable[[Task], PruneOptions]) -> Contender:
    """slimdeploy with the options for a task."""

    def run(task: Task, output: Path) -> dict[str, float]:
        result = prune_stage(
            task.source, options=options_for(task), output=output, data=task.data, device=task.device,
            force=True,
        ).result  # fmt: skip
        assert result.accuracy is not None
        found = result.accuracy
        return {
            "cut": found["after"],
            "mended": found.get("after_compensation", found["after_folding"]),
            "recalibrated": found["after_recalibration"],
            "seconds": result.seconds,
        }

    return run


CONTENDERS["slimdeploy: γ"] = by_slimdeploy(lambda task: PruneOptions(params=task.params))
CONTENDERS["slimdeploy: surgeon, coupled, 64 M MACs"] = by_slimdeploy(
    lambda task: PruneOptions(macs=64e6, criterion="surgeon", residual="couple", align=32)
)
CONTENDERS["slimdeploy: surgeon, coupled, 66.7 ms"] = by_slimdeploy(
    lambda task: PruneOptions(
        latency_ms=66.7, latency_table=str(task.latency_table), measure=False,
        criterion="surgeon", residual="couple", align=16, allow_block_removal=True,
    )
)  # fmt: skip


@contender("plain threshold, unaligned")
def plain_threshold(task: Task, output: Path) -> dict[str, float]:
    """One threshold on |γ| over stem, c1 and c2, at least 3 channels per layer: the lowest one that meets the
    budget.
    """
    parent = load_checkpoint(task.source)
    started = time.perf_counter()
    groups = channel_groups(parent.info.graph)
    scores = channel_scores(Evidence(parent.network, None, 0), groups, "gamma")
    values = np.sort(np.concatenate(list(scores.values())))

    def cut(index: int) -> GraphNetwork:
        counts = {n: max(min(3, len(s)), int((s >= values[index]).sum())) for n, s in scores.items()}
        kept = {name: best_channels(scores[name], count) for name, count in counts.items()}
        return prune_network(parent.network, groups, kept, fold=False)[0]

    index = _first(len(values) - 1, lambda i: network_cost(cut(i).graph, task.size).params <= task.params)
    return _finish(parent, cut(index), task, output, time.perf_counter() - started)


def by_torch_pruning(importance_name: str, round_to: int | None, macs: float | None = None) -> Contender:
    """Torch-Pruning, down to at most `macs`, or to the parameters of the task."""

    def run(task: Task, output: Path) -> dict[str, float]:
        import torch_pruning

        parent = load_checkpoint(task.source)
        example = torch.randn(1, 3, parent.info.preprocessing.size, parent.info.preprocessing.size)
        importance = {
            "BN-scale": torch_pruning.importance.BNScaleImportance,
            "group-norm": lambda: torch_pruning.importance.MagnitudeImportance(p=2),
        }[importance_name]()

        def guarded(group: Any, **options: Any) -> torch.Tensor | None:
            """The importance with two corrections, without which no ratio meets the budget. NaN, which BN
            scale gives for a layer whose γ are all zero, counts as 0. The best channels of each layer are
            always kept, because a layer that would lose all its channels keeps its full width.
            """
            found = importance(group, **options)
            if found is None:
                return None
            found = torch.nan_to_num(found)
            found[found.topk(min(round_to or 3, len(found))).indices] = torch.inf
            return found

        def cut(step: int) -> GraphNetwork:
            network = copy.deepcopy(parent.network)
            last = network.get_submodule(classifier_of(network.graph).name)
            pruner = torch_pruning.pruner.BasePruner(
                network, example, importance=guarded, global_pruning=True, pruning_ratio=step / RATIOS,
                max_pruning_ratio=1.0, round_to=round_to, ignored_layers=[last],
            )  # fmt: skip
            pruner.step()
            return _as_pruned(network)

        def fits(step: int) -> bool:
            cost = network_cost(cut(step).graph, task.size)
            return cost.macs <= macs if macs else cost.params <= task.params

        started = time.perf_counter()
        cut(RATIOS // 2)
        seconds = time.perf_counter() - started  # one cut, without the search for the ratio
        return _finish(parent, cut(_first(RATIOS - 1, fits)), task, output, seconds)

    return run


for _importance in ("BN-scale", "group-norm"):
    for _round_to in (None, 8):
        _name = f"Torch-Pruning {_importance}" + (f", round_to={_round_to}" if _round_to else "")
        CONTENDERS[_name] = by_torch_pruning(_importance, _round_to)
CONTENDERS["Torch-Pruning BN-scale, round_to=8, 64 M MACs"] = by_torch_pruning("BN-scale", 8, macs=64e6)


def _as_pruned(network: GraphNetwork) -> GraphNetwork:
    """A network with the widths that Torch-Pruning left in `network`, and its weights."""
    tensors = network.state_dict()
    found = GraphNetwork(fit_to_tensors(network.graph, {name: tuple(t.shape) for name, t in tensors.items()}))
    found.load_state_dict(tensors)
    return found.eval()


def _finish(
    parent: Checkpoint, pruned: GraphNetwork, task: Task, output: Path, seconds: float
) -> dict[str, float]:
    """Accuracies of `pruned`, which is recalibrated and written."""
    dataset = dataset_for(parent.info, task.data, task.source)
    pruned.to(task.device)
    found = {"cut": _accuracy(pruned, dataset, task.device), "seconds": seconds}
    images = balanced_subset(dataset.train, RECALIBRATION_IMAGES)
    recalibrate(pruned, shuffled(images, dataset.preprocessing, device=task.device), device=task.device)
    found["recalibrated"] = _accuracy(pruned, dataset, task.device)
    pruned.cpu()
    info = parent.info.after("prune", graph=pruned.graph, metrics={}, data=task.data.to_json())
    save_checkpoint(output, pruned, info)
    return found


def _accuracy(network: GraphNetwork, dataset: Dataset, device: str) -> float:
    return evaluate_network(network, dataset.test, dataset.preprocessing, device=device).accuracy


def _first(highest: int, fits: Callable[[int], bool]) -> int:
    """The lowest number up to `highest` for which `fits`. The search starts from below, because a layer that
    rounding would leave without channels keeps its width, so that networks grow again at the highest ratios.
    """
    strides = range(0, highest + 1, max(1, highest // 20))
    high = next((number for number in (*strides, highest) if fits(number)), None)
    if high is None:
        raise click.ClickException("no ratio meets the budget")
    low = max(0, high - strides.step)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low
