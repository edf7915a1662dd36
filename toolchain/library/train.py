"""`slimdeploy.train` and `slimdeploy.finetune`: train a network on a dataset."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimdeploy.toolchain.data.dataset import Dataset, Split, balanced_subset
from slimdeploy.toolchain.data.feed import Batch, Feed, LoaderFeed
from slimdeploy.toolchain.data.loader_batches import OwnBatches
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.from_module import as_checkpoint, described_by, from_module
from slimdeploy.toolchain.library.keywords import takes
from slimdeploy.toolchain.library.training_images import Given
from slimdeploy.toolchain.models.checkpoint import Checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.models.named_networks import named_network
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.recalibration import recalibrate, shuffled
from slimdeploy.toolchain.runtime.torch_device import device_for
from slimdeploy.toolchain.training.batchnorm import end_synchronising
from slimdeploy.toolchain.training.continuing import as_before, from_weights, was_trained
from slimdeploy.toolchain.training.distillation import load_teacher
from slimdeploy.toolchain.training.distributed import ALONE, Ranks
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.loop import fit
from slimdeploy.toolchain.training.options import FINETUNE_LR, OF_DATASETS, TrainOptions
from slimdeploy.toolchain.training.removed import Removed, removed_from
from slimdeploy.toolchain.training.setup import short_run, small_crop
from slimdeploy.toolchain.training.sparsity import penalised_count, penalised_scales, zero_share
from slimdeploy.toolchain.training.training_data import training_data


@dataclass(frozen=True)
class TrainResult:
    """The trained network and its results. Accuracies are in 0…1; `train` is that of the last epoch on
    augmented images.
    """

    checkpoint: Checkpoint
    epochs: int
    accuracy: dict[str, float]
    loss: dict[str, float]
    zero_share: float
    """Share of the penalised γ that are exactly zero."""
    images_per_second: float
    seconds: float
    removed: Removed | None = None
    """Channels removed during training, if any."""

    @property
    def network(self) -> GraphNetwork:
        """The trained network, a `torch.nn.Module`: (N, C, size, size) → (N, classes)."""
        return self.checkpoint.network

    def to_json(self) -> dict[str, Any]:
        document = {name: value for name, value in vars(self).items() if name != "checkpoint"}
        return {**document, "removed": self.removed and self.removed.to_json()}


@dataclass(frozen=True)
class Run:
    """Context of a training: its stage, the description of the data, the file for its state (None: no state),
    and the processes that share it.
    """

    stage: str
    data: dict[str, Any] | None = None
    output: Path | None = None
    resume: bool = False
    ranks: Ranks = ALONE


@takes(TrainOptions)
def train(
    network: Checkpoint | nn.Module | str,
    *,
    data: Dataset | Iterable[Batch],
    val: Iterable[Batch] | None = None,
    test: Iterable[Batch] | None = None,
    size: int | None = None,
    device: str | torch.device | None = None,
    given: Collection[str],
    options: TrainOptions,
) -> TrainResult:
    """Train a copy of `network` on the training images of `data`; `network` itself is not changed.

    For a checkpoint that slimdeploy has trained before, options of augmentation and optimiser that are not
    given default to those of its last training, and `lr` to 3e-3, like with `slimdeploy train --weights`.

    Args:
        network: A checkpoint, a module that takes images (N, C, size, size) float32 and returns
            logits (N, classes), or, with a dataset, the name of an architecture, such as `resnet18` or
            `torchvision:resnet18`, for random weights.
        data: A dataset, whose images are augmented for training; a share of them is held out for validation,
            and the test images are used once, at the end. Or batches that can be iterated repeatedly
            (a DataLoader, a list), once per epoch: images (N, C, size, size) float32, normalised and
            augmented, and labels (N,).
        val: Batches in the same form, to validate on after each epoch. Only with batches as `data`.
        test: Batches in the same form, to evaluate on once, at the end. Only with batches as `data`.
        size: Side of the images in pixels. Required for a module with batches.
        device: Device to compute on, e.g. `cuda`. Default: the network's device.

    Returns:
        The trained network, in eval mode, with its accuracies and losses.

    Raises:
        SlimdeployError: Unusable options or data, another number of classes, or a loss that becomes NaN or
            infinite.
    """
    return _trained("train", network, Given(data, val, test, size), device, options, given)


@takes(TrainOptions, {"lr": FINETUNE_LR})
def finetune(
    network: Checkpoint | nn.Module,
    *,
    data: Dataset | Iterable[Batch],
    val: Iterable[Batch] | None = None,
    test: Iterable[Batch] | None = None,
    size: int | None = None,
    device: str | torch.device | None = None,
    given: Collection[str],
    options: TrainOptions,
) -> TrainResult:
    """Fine-tune a pruned network: like `train`, with the default learning rate of fine-tuning.

    Options of augmentation and optimiser that are not given default to those of the last training.

    Args:
        network: A checkpoint, such as `prune(…).checkpoint`, or a module.
        data: A dataset or batches, as for `train`.
        val: Batches to validate on after each epoch. Only with batches as `data`.
        test: Batches to evaluate on once, at the end. Only with batches as `data`.
        size: Side of the images in pixels. Required for a module with batches.
        device: Device to compute on, e.g. `cuda`. Default: the network's device.

    Returns:
        The trained network, in eval mode, with its accuracies and losses.

    Raises:
        SlimdeployError: Like `train`.
    """
    return _trained("finetune", network, Given(data, val, test, size), device, options, given)


def _trained(
    stage: str,
    network: Checkpoint | nn.Module | str,
    images: Given,
    device: str | torch.device | None,
    options: TrainOptions,
    given: Collection[str],
) -> TrainResult:
    start = _start(network, images, options)
    device = device_for(start.network, device)
    data = images.for_network(start.info, device, options)
    if was_trained(start.info):
        own = given if images.dataset else {*given, *OF_DATASETS}
        options = as_before(options, start.info, given=own, data="")
        if stage == "train":
            options = from_weights(options, given=given)
    return trained(start, data, options, device=device, run=Run(stage))


def _start(network: Checkpoint | nn.Module | str, images: Given, options: TrainOptions) -> Checkpoint:
    """A copy of the network to train, with the preprocessing and class names of the dataset, if any."""
    dataset = images.dataset
    if isinstance(network, str):
        if dataset is None:
            raise SlimdeployError("`network` is a name: pass a Dataset as `data`, or a module as `network`")
        size, classes = dataset.preprocessing.size, len(dataset.class_names)
        channels = dataset.preprocessing.image_channels
        fresh = named_network(network, size=size, classes=classes, seed=options.seed, image_channels=channels)
        return Checkpoint(fresh, ModelInfo(fresh.graph, dataset.preprocessing, dataset.class_names), "")
    if dataset is not None and isinstance(network, nn.Module):
        network = from_module(network, preprocessing=dataset.preprocessing)
    found = as_checkpoint(network, size=images.size)
    info = found.info if dataset is None else described_by(dataset, found)
    return Checkpoint(copy.deepcopy(found.network), info, found.sha256)


def trained(
    start: Checkpoint, dataset: Dataset | OwnBatches, options: TrainOptions, *, device: str, run: Run
) -> TrainResult:
    """Train the network of `start` in place and evaluate it. The hash of a new network is empty.

    Raises SlimdeployError like `fit`, and for images that are too small or too few.
    """
    started = time.perf_counter()
    info, preprocessing, ranks = start.info, dataset.preprocessing, run.ranks
    info.graph.shapes(preprocessing.size)  # refuses images too small to pass through
    parts = training_data(dataset, options)
    if isinstance(parts.train, Split):
        _advise(start, options, len(parts.train), preprocessing.size)
    teacher = None
    if options.teacher:
        teacher = load_teacher(Path(options.teacher), info, device=device, cache=options.teacher_cache)
    facts: dict[str, Any] = {
        "options": _applied(options, dataset),
        "data": run.data,
        "parent": start.sha256 or None,
        "teacher": teacher.sha256 if teacher else None,
    }
    network, history = fit(
        start.network,
        parts,
        options,
        output=run.output,
        device=device,
        setup=_setup(info, dataset, facts, run) if run.output and isinstance(dataset, Dataset) else None,
        resume=run.resume,
        ranks=ranks,
        teacher=teacher,
    )
    if teacher and teacher.cache and ranks.main:
        log(str(teacher.cache))
    if options.recalibration_images:
        end_synchronising(network)  # each process measures all the images
        recalibrate(network, _unaugmented(parts.train, options, preprocessing, device), device=device)
    found = {
        name: evaluate_network(network, images, preprocessing, device=device, ranks=ranks)
        for name, images in (("val", parts.validation), ("test", dataset.test))
        if images is not None
    }
    accuracy = {name: evaluation.accuracy for name, evaluation in found.items()}
    if history:
        accuracy["train"] = history[-1].train_accuracy
    seconds = time.perf_counter() - started
    metrics = {"accuracy": accuracy, "loss": {name: evaluation.loss for name, evaluation in found.items()}}
    residual = options.sparse_residual
    if removed := removed_from(info.graph, network.graph, preprocessing.size, residual=residual):
        facts["removed"] = removed.to_json()
    after = info.after(run.stage, graph=network.graph, metrics=metrics, epochs=len(history), **facts)
    gone = penalised_count(info.graph, options.sparse_layers)
    gone -= penalised_count(network.graph, options.sparse_layers)
    return TrainResult(
        checkpoint=Checkpoint(network.eval(), after, ""),
        epochs=len(history),
        accuracy=accuracy,
        loss=metrics["loss"],
        zero_share=zero_share(penalised_scales(network, options.sparse_layers), removed=gone),
        removed=removed,
        images_per_second=sum(r.images_per_second for r in history) / max(len(history), 1),
        seconds=seconds,
    )


def _advise(start: Checkpoint, options: TrainOptions, images: int, size: int) -> None:
    """Log warnings if the options give too few steps, or if the default crop hardly changes the images."""
    fresh = not (start.sha256 or start.info.provenance)
    if fresh and (line := short_run(options, images)):
        log(line)
    if options.epochs and (line := small_crop(options, size)):
        log(line)


def _applied(options: TrainOptions, dataset: Dataset | OwnBatches) -> dict[str, Any]:
    """The options that had an effect."""
    unused = () if isinstance(dataset, Dataset) else OF_DATASETS
    return {name: value for name, value in options.to_json().items() if name not in unused}


def _unaugmented(
    images: Split | LoaderFeed, options: TrainOptions, preprocessing: Preprocessing, device: str
) -> Feed:
    """The images for recalibrating BN statistics: without augmentation, except for the caller's batches,
    which are used as they are.
    """
    count = options.recalibration_images
    if isinstance(images, LoaderFeed):
        return replace(images, images=count)
    return shuffled(balanced_subset(images, count), preprocessing, device=device)


def _setup(info: ModelInfo, dataset: Dataset, facts: dict[str, Any], run: Run) -> dict[str, Any]:
    """Identifies a run: a state can be resumed only by a run with the same identity."""
    chosen = json.loads(json.dumps(dataset.preprocessing.to_json()))
    return {
        "stage": run.stage,
        "network": {"arch": info.graph.arch, "digest": info.graph.digest()},
        **facts["options"],
        "data": (run.data or {}).get("name"),
        "classes": list(info.class_names),
        # In this order: other images also change the mean.
        **{name: chosen[name] for name in ("size", "resize", "interpolation", "channels")},
        "images": dataset.digest(),
        **{name: chosen[name] for name in ("mean", "std")},
        "parent": facts["parent"],
        "teacher": facts["teacher"],
    }
