"""The stage `prune`: prune a checkpoint."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.file_kinds import CHECKPOINT
from slimdeploy.toolchain.library.fine_tuning import fine_tuning
from slimdeploy.toolchain.library.prune import prune
from slimdeploy.toolchain.library.prune_result import PruneResult
from slimdeploy.toolchain.models.checkpoint import load_checkpoint, save_checkpoint
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.stages.written import Written


def prune_stage(
    checkpoint: Path,
    *,
    options: PruneOptions,
    output: Path,
    data: DataOptions | None = None,
    device: str = "cpu",
    force: bool = False,
) -> Written[PruneResult]:
    """`prune` the network of `checkpoint` and write the smaller one to `output`.

    Raises SlimdeployError like `prune`, for an existing output, and for data with other classes.
    """
    artifacts.check_output(output, force=force, kind=CHECKPOINT)
    parent = load_checkpoint(checkpoint)
    dataset, between = None, None
    if data:
        dataset = dataset_for(parent.info, data, checkpoint)
        if options.steps > 1:
            between = fine_tuning(parent.info, dataset, options, device=device, data=data.name)
    result = prune(
        parent,
        data=dataset,
        device=device,
        between=between,
        provenance={"data": data.to_json() if data else None},
        options=options,
    )
    pruned = result.checkpoint
    return Written(output, save_checkpoint(output, pruned.network, pruned.info), result)
