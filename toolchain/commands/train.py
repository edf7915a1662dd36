"""`slimdeploy train`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags, given
from slimdeploy.toolchain.commands.options import (
    data_options,
    machine_options,
    network_options,
    output_option,
    resume_option,
)
from slimdeploy.toolchain.formatting import count, facts_table, percent, short
from slimdeploy.toolchain.paths import InputPath
from slimdeploy.toolchain.runtime.torch_device import torch_device
from slimdeploy.toolchain.training.options import WEIGHTS_LR, TrainOptions

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions
    from slimdeploy.toolchain.library.train import TrainResult
    from slimdeploy.toolchain.stages.written import Written


@command("train")
@network_options()
@click.option("--weights", type=InputPath(), metavar="FILE",
              help="Start from a torchvision .pth, safetensors with its names, or a checkpoint.")  # fmt: skip
@data_options(required=True, preprocessing=True)
@flags(TrainOptions, shown={"lr": f"{TrainOptions.lr:g}; {WEIGHTS_LR:g} with --weights"})
@output_option
@resume_option
@machine_options
def train(
    options: TrainOptions,
    arch: str | None,
    arguments: tuple[str, ...],
    stem: str | None,
    weights: Path | None,
    data: DataOptions,
    output: Path,
    force: bool,
    resume: bool,
    device: str,
    threads: int | None,
) -> Output:
    """Train a network; with --sparsity, drive the γ of unimportant channels to exactly zero.

    With --weights, training starts from those weights. If the number of classes differs, the classifier is
    initialised again. --epochs 0 only converts and evaluates. If the weights are a checkpoint, batch size,
    augmentation and validation images default to those that it was trained with.

    Validation images are held out of the training split; the test split is used once, at the end. The history
    is written to OUTPUT.history.jsonl and OUTPUT.tensorboard. After an interruption, the same command with
    --resume continues.
    """
    from slimdeploy.toolchain.models.named_networks import parse_arguments
    from slimdeploy.toolchain.stages.train import train_stage
    from slimdeploy.toolchain.training.distributed import joined

    name = torch_device(device, threads)
    with joined(name) as ranks:
        result = train_stage(
            arch=arch,
            arguments=parse_arguments(arguments),
            stem=stem,
            weights=weights,
            data=data,
            options=options,
            given=given(TrainOptions),
            output=output,
            device=name,
            resume=resume,
            force=force,
            ranks=ranks,
        )
    return training_output(result)


def training_output(written: Written[TrainResult]) -> Output:
    """How `train` and `finetune` report."""
    result = written.result
    rows = [
        ("checkpoint", str(written.checkpoint)),
        ("epochs", str(result.epochs)),
        ("validation accuracy", percent(result.accuracy["val"])),
        ("test accuracy", percent(result.accuracy["test"])),
        ("test loss", f"{result.loss['test']:.4f}"),
        ("γ exactly zero", percent(result.zero_share)),
        *_removed_rows(result),
        *([("training speed", f"{result.images_per_second:,.0f} images/s")] if result.epochs else []),
        ("time", f"{result.seconds:.0f} s"),
    ]
    return Output(written.to_json(), facts_table(rows))


def _removed_rows(result: TrainResult) -> list[tuple[str, str]]:
    """Rows about the channels that were removed during training, if any."""
    removed = result.removed
    if removed is None:
        return []
    params, macs = removed.params, removed.macs
    return [
        ("channels removed", f"{count(removed.channels)} of {count(removed.of)}"),
        ("parameters", f"{count(params['before'])} → {count(params['after'])}"),
        ("MACs", f"{short(macs['before'])} → {short(macs['after'])}"),
    ]
