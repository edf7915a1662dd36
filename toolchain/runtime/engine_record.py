"""The record of an engine in its sidecar: how it was built, for which machine, and whether it can run here.

The plan itself is a plain TensorRT plan. An incompatible plan is detected before TensorRT loads it, whose own
message is "version tag mismatch".
"""

from __future__ import annotations

import re
import shlex
import types
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError, shorten
from slimdeploy.toolchain.machine import sysfs
from slimdeploy.toolchain.machine.cuda import cuda_version, driver_version
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.runtime.capabilities import parse_version
from slimdeploy.toolchain.runtime.device import Device


@dataclass(frozen=True)
class EngineTarget:
    """Versions and hardware that decide whether a plan can be loaded, and how fast it runs."""

    tensorrt: str
    gpu: str
    compute_capability: str
    """E.g. `8.7`."""
    cuda: str | None = None
    """The driver's CUDA version."""
    driver: str | None = None
    l4t: str | None = None
    """L4T version on a Jetson, e.g. `36.4.3`."""


@dataclass(frozen=True)
class EngineRecord:
    """The sidecar of an engine, without the file's name and hash."""

    parent: dict[str, str]
    """The ONNX file: `file` and `sha256`."""
    machine: EngineTarget
    precision: str
    batch: tuple[int, int, int]
    input_shape: tuple[int, int, int]
    typing: str
    options: dict[str, Any]
    version_compatible: bool
    hardware_compatible: str | None
    build_seconds: float
    plan_bytes: int
    audit: dict[str, Any] | None
    rebuild: str
    """The command that rebuilds the engine."""
    model: str | None
    """ModelInfo as JSON, from the ONNX file."""

    def rebuild_here(self, plan: Path) -> str:
        """The rebuild command for the plan at its current path: from the ONNX file beside it, if the original
        ONNX file no longer exists.
        """
        words = shlex.split(self.rebuild)  # slimdeploy export ONNX … -o PLAN --force
        beside = plan.parent / self.parent["file"]
        if not Path(words[2]).is_file() and beside.is_file():
            words[2] = str(beside)
        words[words.index("-o") + 1] = str(plan)
        return shlex.join(words)

    def info(self, source: str) -> ModelInfo | None:
        return ModelInfo.from_json(self.model, source) if self.model else None


def engine_target(trt: ModuleType, device: Device) -> EngineTarget:
    """The current machine."""
    capability = re.sub(r"^sm_(\d+)(\d)$", r"\1.\2", device.arch)
    cuda = ".".join(map(str, cuda_version() or ())) or None
    return EngineTarget(trt.__version__, device.name, capability, cuda, driver_version(), sysfs.l4t_version())


def write_engine_record(plan: Path, record: EngineRecord) -> None:
    """Write the record and the hash of the plan to its sidecar."""
    artifacts.write_sidecar(plan, {"kind": "engine", **asdict(record)})


def read_engine_record(plan: Path) -> EngineRecord | None:
    """The record of a plan with the right hash; None for a plan without a record, e.g. from trtexec.

    Raises SlimdeployError if the sidecar is damaged, or belongs to another plan.
    """
    path = artifacts.sidecar(plan)
    if not path.is_file():
        return None
    document = artifacts.read_json(path, "description of an engine")
    try:
        values = _typed(EngineRecord, document)
        machine = EngineTarget(**_typed(EngineTarget, values["machine"]))
        record = EngineRecord(**{**values, "machine": machine})
        _check_rebuild(record, plan)
        for version in (machine.tensorrt, machine.compute_capability):
            if version != "host":  # the fake device has no compute capability
                parse_version(version)
        wanted = document["sha256"]
    except (KeyError, ValueError, SlimdeployError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise SlimdeployError(f"{path} is not the description of an engine ({reason})") from error
    if artifacts.sha256_file(plan) != wanted:
        raise SlimdeployError(
            f"{plan} is damaged, or not the file that {path} describes: {record.rebuild_here(plan)}"
        )
    return record


def _check_rebuild(record: EngineRecord, plan: Path) -> None:
    """Raises ValueError if the command builds no engine, KeyError if the parent has no name."""
    try:
        record.rebuild_here(plan)
    except (ValueError, IndexError):
        raise ValueError(f"rebuild is {shorten(repr(record.rebuild), 60)}") from None


def _typed(kind: type, document: Any) -> dict[str, Any]:
    """The fields of a dataclass from a JSON document, with lists as tuples if declared so; fields that are
    dataclasses are not converted.

    Raises KeyError for a missing field, ValueError for one of another type.
    """
    if not isinstance(document, dict):
        raise ValueError("not an object")
    hints, found = typing.get_type_hints(kind), {}
    for field in fields(kind):
        value, hint = document[field.name], hints[field.name]
        if not hasattr(hint, "__dataclass_fields__") and not _fits(value, hint):
            raise ValueError(f"{field.name} is {shorten(repr(value), 60)}")
        found[field.name] = tuple(value) if typing.get_origin(hint) is tuple else value
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has a declared type."""
    parts = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, value, parts))
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(each, parts[1]) for each in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool)))


def check_loadable(plan: Path, record: EngineRecord, here: EngineTarget) -> None:
    """Raises SlimdeployError if the plan was built for another machine, with the differences and the rebuild
    command.
    """
    differing = differences(record, here)
    if differing:
        raise SlimdeployError(
            f"{plan} was built for {' and '.join(differing)}; build it here: {record.rebuild_here(plan)}"
        )


def differences(record: EngineRecord, here: EngineTarget) -> list[str]:
    """Why the plan can't be loaded here, one entry per reason; empty if it can."""
    built, found = record.machine, []
    if built.tensorrt != here.tensorrt and not _newer_compatible(record, here):
        found.append(f"TensorRT {built.tensorrt} (here: {here.tensorrt})")
    if (built.gpu, built.compute_capability) != (here.gpu, here.compute_capability):
        level = record.hardware_compatible
        fits = (level == "same-capability" and built.compute_capability == here.compute_capability) or (
            level == "ampere+" and parse_version(here.compute_capability) >= (8, 0)
        )
        if not fits:
            found.append(
                f"{built.gpu}, compute capability {built.compute_capability} "
                f"(here: {here.gpu}, {here.compute_capability})"
            )
    return found


def _newer_compatible(record: EngineRecord, here: EngineTarget) -> bool:
    built, now = parse_version(record.machine.tensorrt), parse_version(here.tensorrt)
    return record.version_compatible and built[0] == now[0] and now >= built
