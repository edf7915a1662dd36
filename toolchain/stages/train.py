"""The stages `train` and `finetune`: train on data and write a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import (
    DataOptions,
    Dataset,
    image_side,
    load_dataset,
)
from slimdeploy.toolchain.data.of_model import data_of, dataset_for, for_network
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.file_kinds import CHECKPOINT
from slimdeploy.toolchain.library.train import Run, TrainResult, trained
from slimdeploy.toolchain.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.models.named_networks import named_network
from slimdeploy.toolchain.networks.architectures import source_file
from slimdeploy.toolchain.paths import InputPath, OutputPath, check_apart
from slimdeploy.toolchain.preprocessing import PerChannel, Preprocessing
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.stages.written import Written
from slimdeploy.toolchain.training.continuing import as_before, from_weights
from slimdeploy.toolchain.training.distributed import ALONE, Ranks, first_on_machine
from slimdeploy.toolchain.training.history import history_path, tensorboard_path
from slimdeploy.toolchain.training.options import ALL_OPTIONS, TrainOptions
from slimdeploy.toolchain.training.pretrained import Weights, read_weights
from slimdeploy.toolchain.training.state import state_path


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
) -> Written[TrainResult]:
    """Train a new network, or the one in `weights`, and write its checkpoint to `output`.

    The options in `given` are used as given; with `weights`, the others default to those of their training.

    `arch` and `stem` default to ResNet-50 and its stem; `arguments` are passed to the function that builds an
    imported network. The preprocessing defaults to that of the weights, else to that of the data. Raises
    SlimdeployError for unusable data, options or weights, an existing output, and a loss that becomes NaN or
    infinite. With several `ranks` the first one writes.
    """
    source = source_file(arch) if arch else None
    check_apart([("`arch`", source, InputPath()), ("`output`", output, OutputPath())])
    _check_run(output, options, ranks, resume=resume, force=force)
    chosen = data.statistics
    found = None
    if weights:
        found = read_weights(
            weights,
            arch=arch,
            arguments=arguments,
            stem=stem,
            size=partial(_image_side, data, ranks),
            image_channels=data.image_channels,
        )
        data = found.prepared(data)
    with first_on_machine(ranks):
        dataset = load_dataset(data)
    if found:
        start = found.for_classes(dataset, options.seed)
    else:
        size, classes = dataset.preprocessing.size, len(dataset.class_names)
        network = named_network(
            arch,
            size=size,
            classes=classes,
            stem=stem,
            arguments=arguments,
            seed=options.seed,
            image_channels=dataset.preprocessing.image_channels,
        )
        data, dataset = for_network(arch, network.graph, data, dataset)
        info = ModelInfo(network.graph, dataset.preprocessing, dataset.class_names)
        start = Checkpoint(network, info, "")
    if ranks.main:
        log(_described(dataset.preprocessing, chosen, found))
    if weights:
        options = as_before(options, start.info, given=given, data=data.name)
        options = from_weights(options, given=given)
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
) -> Written[TrainResult]:
    """Continue training the network of `checkpoint`; `data` None means the data that it was trained on.

    The options in `given` are used as given; the others default to those of the last training.

    Raises SlimdeployError like `train_stage`, or if the classes of the data differ from the checkpoint's.
    """
    _check_run(output, options, ranks, resume=resume, force=force)
    parent = load_checkpoint(checkpoint)
    data = data or data_of(parent.info, checkpoint)
    with first_on_machine(ranks):
        dataset = dataset_for(parent.info, data, checkpoint)
    options = as_before(options, parent.info, given=given, data=data.name)
    return _train(parent, dataset, data, options, "finetune", output, device, resume, ranks)


def _image_side(data: DataOptions, ranks: Ranks) -> int:
    with first_on_machine(ranks):
        return image_side(data)


def _described(
    preprocessing: Preprocessing, given: tuple[PerChannel | None, PerChannel | None], weights: Weights | None
) -> str:
    """One line: the preprocessing of the images, and where mean and deviation come from."""
    origin = (weights and weights.source) or "of the training data"
    if not (weights and weights.published):
        mean, std = ("as given" if value else origin for value in given)
        origin = mean if mean == std else f"mean {mean}, std {std}"
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
) -> Written[TrainResult]:
    """Train `start`, evaluate it and write it to `output`. The hash of a new network is empty."""
    run = Run(stage, data.to_json(), output, resume, ranks)
    result = trained(start, dataset, options, device=device, run=run)
    sha256 = ""
    if ranks.main:
        sha256 = save_checkpoint(output, result.network, result.checkpoint.info)
        state_path(output).unlink(missing_ok=True)
    ranks.wait()
    return Written(output, sha256, result)


def _check_run(output: Path, options: TrainOptions, ranks: Ranks, *, resume: bool, force: bool) -> None:
    """Refuse to replace a finished checkpoint or an unfinished run without --force. It is replaced only when
    the new run begins: its input may be unusable.
    """
    cache = Path(options.teacher_cache) if options.teacher_cache else None
    for path in (output, state_path(output), history_path(output), tensorboard_path(output)):
        check_apart([("the run's file", path, OutputPath()), ("`teacher_cache`", cache, InputPath())])
    if ranks.main:
        _check_output(output, resume=resume, force=force)
    ranks.wait()


def _check_output(output: Path, *, resume: bool, force: bool) -> None:
    for other in (output.with_name(f"{output.name}.safetensors"), output.with_suffix("")):
        if (
            other != output
            and history_path(other) == history_path(output)
            and (other.is_file() or state_path(other).exists())
        ):
            raise SlimdeployError(
                f"{output} would share {history_path(output)} with {other}: choose another name"
            )
    for path in (output, state_path(output), history_path(output)):
        artifacts.remove_leftovers(path)
    if resume and output.is_file() and not state_path(output).exists() and not force:
        raise SlimdeployError(
            f"{output} is finished: nothing to resume (to train it further: slimdeploy finetune {output})"
        )
    replace = force or (resume and state_path(output).exists())
    artifacts.check_output(output, force=replace, kind=CHECKPOINT)
    if resume:
        if not state_path(output).exists():
            log(f"`resume`: there is no unfinished run of {output}: starting a new one{_others(output)}")
        return
    if state_path(output).exists() and not force:
        raise SlimdeployError(
            f"an unfinished run is beside {output}: `resume` continues it, `force` starts again"
        )
    artifacts.check_output(history_path(output), force=force)


def _others(output: Path) -> str:
    """Unfinished runs in the same folder, one of which may have been meant."""
    names = sorted(p.name.removesuffix(".state") for p in output.parent.glob("*.state"))
    return f"; unfinished there: {', '.join(names)}" if names else ""
