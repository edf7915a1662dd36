"""`slimdeploy export`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags, refuse
from slimdeploy.toolchain.commands.options import data_options
from slimdeploy.toolchain.declared import declarations
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.engine_options import EngineOptions
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.formatting import facts_table, percent
from slimdeploy.toolchain.paths import InputPath, OutputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions
    from slimdeploy.toolchain.library.export import ExportResult
    from slimdeploy.toolchain.stages.engine import EngineResult


OF_CHECKPOINTS = (
    *declarations(ExportOptions),
    "data",
    "data_dir",
    "size",
    "stream",
)
"""Options that apply only to a checkpoint."""


@command("export")
@click.argument("model", type=InputPath(".json"))
@flags(ExportOptions)
@click.option("--trt", is_flag=True, help="Build a TensorRT engine for this machine's GPU, beside the ONNX.")
@click.option("--trt-check", is_flag=True, help="Check without a GPU that TensorRT can build the model.")
@flags(EngineOptions, into="engine")
@data_options(required=False)
@click.option(
    "-o",
    "--output",
    type=OutputPath(".json"),
    help="File to write [default of an engine: MODEL.engine].",
)
@click.option("--force", is_flag=True, help="Replace the output where it exists.")
def export(
    model: Path,
    options: ExportOptions,
    trt: bool,
    trt_check: bool,
    engine: EngineOptions,
    data: DataOptions | None,
    output: Path | None,
    force: bool,
) -> Output:
    """Write MODEL, a checkpoint, as ONNX with BN folded in, and compare it with torch on real images.

    --data defaults to the data that the checkpoint was trained on. If the outputs differ by more than
    allowed, no file is written and the exit code is 1.

    --trt also builds a TensorRT engine and checks the precision of its layers: the exit code is 1 if one
    differs from the ONNX file. MODEL may then be an ONNX file, and torch is not needed.
    """
    from slimdeploy.toolchain.stages.engine import (
        ENGINE_SUFFIX,
        EngineJob,
        check_engine_output,
        check_machine,
        engine_stage,
    )

    job = EngineJob(engine, build=trt, check=trt_check)
    if not (trt or trt_check):
        refuse(declarations(EngineOptions), "applies to engines: pass --trt or --trt-check")
    if model.suffix == ".onnx":
        if not model.is_file():
            raise artifacts.missing(model, "model")
        if not (trt or trt_check):
            raise SlimdeployError(f"{model} is ONNX already: pass --trt or --trt-check to build it")
        refuse(OF_CHECKPOINTS, f"applies to checkpoints, and {model} is an ONNX file")
        if not trt:
            refuse(("output", "force"), "cannot be used with --trt-check alone, which writes no file")
        check_machine(job)
        result = engine_stage(model, output or model.with_suffix(ENGINE_SUFFIX), job, force=force)
        return Output(
            {**_onnx_facts(model), **result.to_json()}, facts_table(_engine_rows(result)), result.failed
        )

    from slimdeploy.toolchain.stages.export import export_stage

    if output is None:
        raise SlimdeployError("-o/--output is needed: the ONNX file to write")
    check_machine(job)  # before the work, not after it
    if trt:
        check_engine_output(output, output.with_suffix(ENGINE_SUFFIX), force=force)
    elif output.suffix == ENGINE_SUFFIX:
        raise SlimdeployError(
            f"--output {output} is the ONNX file: end it in .onnx (--trt writes the engine beside it)"
        )
    exported = export_stage(model, options=options, output=output, data=data, force=force)
    result = engine_stage(exported.onnx, output.with_suffix(ENGINE_SUFFIX), job, force=force)
    rows = [*_onnx_rows(exported), *_engine_rows(result)]
    return Output({**exported.to_json(), **result.to_json()}, facts_table(rows), result.failed)


def _onnx_rows(result: ExportResult) -> list[tuple[str, str]]:
    return [
        ("ONNX", str(result.onnx)),
        ("precision", result.precision),
        *([("layers in FP32 (beyond FP16)", ", ".join(result.fp32_layers))] if result.fp32_layers else []),
        ("largest logit difference", f"{result.parity.max_abs_error:.1e}"),
        ("same top-1 class", f"{percent(result.parity.top1_agreement)} of {result.parity.images} images"),
    ]


def _onnx_facts(onnx: Path) -> dict[str, Any]:
    from slimdeploy.toolchain.artifacts import sha256_file
    from slimdeploy.toolchain.runtime.onnx_file import read_onnx

    return {
        "onnx": str(onnx),
        "sha256": sha256_file(onnx),
        "precision": read_onnx(onnx).precision,
        "parity": None,
    }


def _engine_rows(result: EngineResult) -> list[tuple[str, str]]:
    rows = []
    if check := result.check:
        rows += [
            ("builds with", f"TensorRT {check.tensorrt} (no GPU)"),
            ("layers before fusion", str(check.layers)),
            ("plan", f"{len(check.content) / 2**20:.1f} MiB in {check.seconds:.1f} s"),
        ]
    if engine := result.engine:
        record, audit = engine.record, engine.audit
        machine = record.machine
        rows += [
            ("engine", str(engine.path)),
            ("built for", f"TensorRT {machine.tensorrt}, {machine.gpu} ({machine.compute_capability})"),
            ("batch", " … ".join(map(str, sorted(set(record.batch))))),
            ("plan", f"{record.plan_bytes / 2**20:.1f} MiB in {record.build_seconds:.1f} s"),
            ("layers", ", ".join(f"{count} {name}" for name, count in sorted(audit.precisions.items()))),
            ("fused", str(audit.fused)),
            ("reformats", str(len(audit.reformats))),
            *((f"missed: {m.node}", f"{m.realised}, not {m.asked}") for m in audit.missed),
        ]
    return rows
