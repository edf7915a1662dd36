"""The stages `train` and `finetune`: data in, a checkpoint with its figures out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import (
    DataOptions,
    Dataset,
    balanced_subset,
    load_dataset,
)
from slimdeploy.toolchain.data.of_model import data_of, dataset_for
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo, Preprocessing
from slimdeploy.toolchain.models.named_networks import named_network
from slimdeploy.toolchain.preprocessing import Triple
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.recalibration import recalibrate, shuffled
from slimdeploy.toolchain.training.continuing import as_before
from slimdeploy.toolchain.training.distillation import load_teacher
from slimdeploy.toolchain.training.distributed import ALONE, Ranks, first_on_machine
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.history import history_path
from slimdeploy.toolchain.training.loop import fit
from slimdeploy.toolchain.training.options import ALL_OPTIONS, WEIGHTS_LR, TrainOptions
from slimdeploy.toolchain.training.pretrained import Weights, read_weights
from slimdeploy.toolchain.training.removed import Removed, removed_from
from slimdeploy.toolchain.training.setup import short_run, small_crop
from slimdeploy.toolchain.training.sparsity import penalised_count, penalised_scales, zero_share
from slimdeploy.toolchain.training.state import state_path
from slimdeploy.toolchain.training.training_data import training_data


@dataclass(frozen=True)
class TrainResult:
    """What a training stage reports. Accuracies are in 0…1; `train` is the last epoch's, on augmented
    images. `sha256` is empty in processes that didn't write.
    """

    checkpoint: Path
    sha256: str
    epochs: int
    accuracy: dict[str, float]
    loss: dict[str, float]
    zero_share: float
    images_per_second: float
    seconds: float
    removed: Removed | None = None
    """Where channels were taken out while training."""

    def to_json(self) -> dict[str, Any]:
        removed = self.removed and self.removed.to_json()
        return {**vars(self), "checkpoint": str(self.checkpoint), "removed": removed}


def train_stage(
    *,
    data: DataOptions,
    options: TrainOptions,
    output: Path,
    device: str,
    arch: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    stem: str | None = None,
    weights: Path | None = None,
    given: frozenset[str] = ALL_OPTIONS,
    resume: bool = False,
    force: bool = False,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train a fresh network, or the one in `weights`, and write its checkpoint to `output`.

    Of `options` those `given` are taken as they are; the others, with `weights`, as those were trained.

    `arch` and `stem` default to the reference's; `arguments` go to what builds an imported network. The
    preprocessing that `data` leaves open is what came with the weights or, without, the data's. Raises
    SlimdeployError for unusable data, options or weights, an output that exists, and a loss that isn't a
    number. Of several `ranks` the first writes.
    """
    _check_run(output, ranks, resume=resume, force=force)
    chosen = data.statistics
    found = None
    if weights:
        size = data.geometry.size if data.geometry else None
        found = read_weights(weights, arch=arch, arguments=arguments, stem=stem, size=size)
    data = found.prepared(data) if found else data
    with first_on_machine(ranks):
        dataset = load_dataset(data)
    if found:
        start = found.for_classes(dataset, options.seed)
    else:
        size, classes = dataset.preprocessing.size, len(dataset.class_names)
        network = named_network(
            arch, size=size, classes=classes, stem=stem, arguments=arguments, seed=options.seed
        )
        info = ModelInfo(network.graph, dataset.preprocessing, dataset.class_names)
        start = Checkpoint(network, info, "")
    if ranks.main:
        log(_described(dataset.preprocessing, chosen, found))
    if weights:
        options = as_before(options, start.info, given=given, data=data.name)
        if "lr" not in given and options.epochs:
            log(f"--lr {WEIGHTS_LR:g}, because the training starts from weights")
            options = replace(options, lr=WEIGHTS_LR)
    return _train(start, dataset, data, options, "train", output, device, resume, ranks)


def finetune_stage(
    checkpoint: Path,
    *,
    data: DataOptions | None,
    options: TrainOptions,
    output: Path,
    device: str,
    given: frozenset[str] = ALL_OPTIONS,
    resume: bool = False,
    force: bool = False,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train the network of `checkpoint` on; `data` None means the data that it was trained on.

    Of `options` those `given` are taken as they are, the others as the network was trained.

    Raises SlimdeployError as `train_stage` does, and where the data's classes aren't the checkpoint's.
    """
    _check_run(output, ranks, resume=resume, force=force)
    parent = load_checkpoint(checkpoint)
    data = data or data_of(parent.info, checkpoint)
    with first_on_machine(ranks):
        dataset = dataset_for(parent.info, data, checkpoint)
    options = as_before(options, parent.info, given=given, data=data.name)
    return _train(parent, dataset, data, options, "finetune", output, device, resume, ranks)


def _described(
    preprocessing: Preprocessing, given: tuple[Triple | None, Triple | None], weights: Weights | None
) -> str:
    """One line: how images become the network's input, and where its mean and deviation are from."""
    origin = (weights and weights.source) or "of the training data"
    if all(given) and not (weights and weights.published):
        origin = "as given"
    return f"preprocessing: {preprocessing}, {origin}"


def _train(
    start: Checkpoint,
    dataset: Dataset,
    data: DataOptions,
    options: TrainOptions,
    stage: str,
    output: Path,
    device: str,
    resume: bool,
    ranks: Ranks,
) -> TrainResult:
    """Train `start` (its hash is empty where it is a fresh network), evaluate it and write it to `output`."""
    started = time.perf_counter()
    network, info = start.network, start.info
    info.graph.shapes(dataset.preprocessing.size)  # refuses images too small to pass through
    parts = training_data(dataset, options)
    if not start.sha256 and (line := short_run(options, len(parts.train))):
        log(line)
    if options.epochs and (line := small_crop(options, dataset.preprocessing.size)):
        log(line)
    teacher = load_teacher(Path(options.teacher), info, device=device) if options.teacher else None
    facts: dict[str, Any] = {
        "options": options.to_json(),
        "data": data.to_json(),
        "parent": start.sha256 or None,
        "teacher": teacher.sha256 if teacher else None,
    }
    chosen = json.loads(json.dumps(dataset.preprocessing.to_json()))
    setup = {
        "stage": stage,
        "network": {"arch": info.graph.arch, "digest": info.graph.digest()},
        **options.to_json(),
        "data": data.name,
        "classes": list(info.class_names),
        # In this order: other images have another mean, too.
        **{name: chosen[name] for name in ("size", "resize", "interpolation", "channels")},
        "images": dataset.digest(),
        **{name: chosen[name] for name in ("mean", "std")},
        "parent": facts["parent"],
        "teacher": facts["teacher"],
    }
    trained, history = fit(
        network,
        parts,
        options,
        output=output,
        device=device,
        setup=setup,
        resume=resume,
        ranks=ranks,
        teacher=teacher,
    )
    if options.recalibration_images:
        images = balanced_subset(parts.train, options.recalibration_images)
        recalibrate(trained, shuffled(images, dataset.preprocessing, device=device), device=device)
    preprocessing = dataset.preprocessing
    validation = evaluate_network(trained, parts.validation, preprocessing, device=device, ranks=ranks)
    test = evaluate_network(trained, dataset.test, preprocessing, device=device, ranks=ranks)
    accuracy = {"val": validation.accuracy, "test": test.accuracy}
    if history:
        accuracy["train"] = history[-1].train_accuracy
    seconds = time.perf_counter() - started
    metrics = {"accuracy": accuracy, "loss": {"val": validation.loss, "test": test.loss}}
    sha256 = ""
    removed = removed_from(info.graph, trained.graph, preprocessing.size)
    if removed:
        facts["removed"] = removed.to_json()
    if ranks.main:
        after = info.after(stage, graph=trained.graph, metrics=metrics, epochs=len(history), **facts)
        sha256 = save_checkpoint(output, trained, after)
        state_path(output).unlink(missing_ok=True)
    ranks.wait()
    return TrainResult(
        checkpoint=output,
        sha256=sha256,
        epochs=len(history),
        accuracy=accuracy,
        loss=metrics["loss"],
        zero_share=zero_share(
            penalised_scales(trained, options.sparse_layers),
            removed=penalised_count(info.graph, options.sparse_layers)
            - penalised_count(trained.graph, options.sparse_layers),
        ),
        removed=removed,
        images_per_second=sum(r.images_per_second for r in history) / max(len(history), 1),
        seconds=seconds,
    )


def _check_run(output: Path, ranks: Ranks, *, resume: bool, force: bool) -> None:
    """Refuse to replace a finished checkpoint or an unfinished run unasked; else clear away what is left."""
    if ranks.main:
        _clear(output, resume=resume, force=force)
    ranks.wait()


def _clear(output: Path, *, resume: bool, force: bool) -> None:
    for path in (output, state_path(output), history_path(output)):
        artifacts.remove_leftovers(path)
    artifacts.check_output(output, force=force or (resume and state_path(output).exists()))
    if resume:
        if not state_path(output).exists():
            log(f"--resume: there is no unfinished run of {output}, so it starts afresh{_others(output)}")
        return
    if state_path(output).exists() and not force:
        raise SlimdeployError(
            f"an unfinished run is beside {output}: --resume goes on with it, --force starts again"
        )
    for leftover in (state_path(output), history_path(output)):
        leftover.unlink(missing_ok=True)


def _others(output: Path) -> str:
    """The unfinished runs beside it, whose name may have been meant."""
    names = sorted(p.name.removesuffix(".state") for p in output.parent.glob("*.state"))
    return f"; unfinished there: {', '.join(names)}" if names else ""
