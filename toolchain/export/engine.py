"""From an ONNX file to an engine file: build, audit, and save with its record."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.audit import Audit, audit, read_layers
from slimdeploy.toolchain.export.engine_options import EngineOptions
from slimdeploy.toolchain.export.tensorrt import Plan, build_plan
from slimdeploy.toolchain.models.model_info import METADATA_KEY
from slimdeploy.toolchain.runtime.device import Device
from slimdeploy.toolchain.runtime.engine_record import (
    EngineRecord,
    EngineTarget,
    engine_target,
    write_engine_record,
)
from slimdeploy.toolchain.runtime.tensorrt_callbacks import Progress
from slimdeploy.toolchain.runtime.tensorrt_engine import deserialize


@dataclass(frozen=True)
class Engine:
    """A new engine file."""

    path: Path
    record: EngineRecord
    audit: Audit

    def to_json(self) -> dict[str, Any]:
        record = asdict(self.record)
        return {"file": str(self.path), **{name: record[name] for name in record if name != "model"}}


def export_engine(
    trt: ModuleType,
    onnx: Path,
    output: Path,
    options: EngineOptions,
    *,
    device: Device,
    progress: Progress | None = None,
) -> Engine:
    """Build `onnx` for the GPU `device` and write the plan and its record to `output`.

    The engine is audited (`Engine.audit.failed`) and saved in any case. Raises SlimdeployError if it can't
    be built.
    """
    machine = engine_target(trt, device)
    cache = timing_cache_path(machine)
    known = cache.read_bytes() if cache.is_file() else b""
    plan = build_plan(trt, onnx, options, timing_cache=known, progress=progress)
    if plan.timing_cache not in (b"", known):
        artifacts.write_bytes(cache, plan.timing_cache)
    engine = deserialize(trt, plan.content, host_code=options.version_compatible)
    built = audit(read_layers(inspect_engine(trt, engine, batch=options.batch[1])), plan.facts.layers)
    record = _engine_record(plan, onnx, output, options, machine, built)
    artifacts.remove_sidecar(output)
    artifacts.write_bytes(output, plan.content)
    write_engine_record(output, record)
    return Engine(output, record, built)


def inspect_engine(trt: ModuleType, engine: Any, *, batch: int) -> dict[str, Any]:
    """TensorRT's description of an engine from its inspector, for a batch size."""
    # Formats of dynamic shapes are only known in a context with a given shape.
    context = engine.create_execution_context()
    if context is None:
        raise SlimdeployError(
            "TensorRT built the engine, but can't create an execution context: too little GPU memory?"
        )
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, (batch, *tuple(engine.get_tensor_shape(name))[1:]))
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    # strict=False: TensorRT separates the names in `Metadata` with a bare control character.
    return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON), strict=False)


def timing_cache_path(machine: EngineTarget) -> Path:
    """File of measured kernel times for a GPU and a TensorRT version; they are invalid for others."""
    name = f"{machine.gpu}-{machine.compute_capability}-tensorrt-{machine.tensorrt}"
    return artifacts.cache_folder("timing") / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.cache"


def rebuild_command(onnx: Path, output: Path, options: EngineOptions) -> str:
    """The command that rebuilds the engine from the ONNX file."""
    words = ["slimdeploy", "export", str(onnx), "--trt"]
    for field in fields(EngineOptions):
        value = getattr(options, field.name)
        if value != field.default:
            words.append("--" + field.name.replace("_", "-"))
            if value is not True:
                words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return shlex.join([*words, "-o", str(output), "--force"])


def _engine_record(
    plan: Plan, onnx: Path, output: Path, options: EngineOptions, machine: EngineTarget, built: Audit
) -> EngineRecord:
    return EngineRecord(
        parent={"file": onnx.name, "sha256": artifacts.sha256_file(onnx)},
        machine=machine,
        precision=plan.facts.precision,
        batch=plan.batch,
        input_shape=plan.input_shape,
        typing=plan.typing,
        options=asdict(options),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        build_seconds=round(plan.seconds, 2),
        plan_bytes=len(plan.content),
        audit=built.to_json(),
        rebuild=rebuild_command(onnx, output, options),
        model=plan.facts.metadata.get(METADATA_KEY),
    )
