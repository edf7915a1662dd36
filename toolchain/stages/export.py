"""The stage `export`: convert a checkpoint to an ONNX file and compare both."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.of_model import data_of, dataset_for
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.file_kinds import ONNX
from slimdeploy.toolchain.library.export import ExportResult, export
from slimdeploy.toolchain.models.checkpoint import load_checkpoint


def export_stage(
    checkpoint: Path,
    *,
    options: ExportOptions,
    output: Path,
    data: DataOptions | None = None,
    force: bool = False,
) -> ExportResult:
    """`export` the network of `checkpoint`; the comparison uses the test images of `data`, by default those
    of the data that it was trained on.
    """
    artifacts.check_output(output, force=force, kind=ONNX)
    parent = load_checkpoint(checkpoint)
    dataset = dataset_for(parent.info, data or data_of(parent.info, checkpoint), checkpoint)
    return export(parent, output=output, data=dataset, force=force, options=options)
