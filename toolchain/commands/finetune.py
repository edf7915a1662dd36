"""`slimdeploy finetune`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags, given
from slimdeploy.toolchain.commands.options import (
    checkpoint_argument,
    data_options,
    machine_options,
    output_option,
    resume_option,
)
from slimdeploy.toolchain.commands.train import training_output
from slimdeploy.toolchain.runtime.torch_device import torch_device
from slimdeploy.toolchain.training.options import FINETUNE_LR, INHERITED, SPARSITY, TrainOptions

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


@command("finetune")
@checkpoint_argument
@data_options(required=False)
@flags(
    TrainOptions,
    but=SPARSITY,
    defaults={"lr": FINETUNE_LR},
    shown=dict.fromkeys(INHERITED, "the checkpoint's"),
)
@output_option
@resume_option
@machine_options
def finetune(
    options: TrainOptions,
    checkpoint: Path,
    data: DataOptions | None,
    output: Path,
    force: bool,
    resume: bool,
    device: str,
    threads: int | None,
) -> Output:
    """Continue training CHECKPOINT without the sparsity penalty.

    The data and the options default to those that CHECKPOINT was trained with.
    """
    from slimdeploy.toolchain.stages.train import finetune_stage
    from slimdeploy.toolchain.training.distributed import joined

    name = torch_device(device, threads)
    with joined(name) as ranks:
        result = finetune_stage(
            checkpoint,
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
