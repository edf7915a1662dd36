"""What an engine was built from, for and with, in the sidecar beside the plan; and whether it runs here.

The plan itself stays a plain TensorRT plan. A plan that doesn't fit is found out before TensorRT sees it,
whose own answer is "version tag mismatch".
"""

from __future__ import annotations

import ctypes
import re
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.runtime.capabilities import parse_version
from slimdeploy.toolchain.runtime.device import Device


@dataclass(frozen=True)
class Machine:
    """Versions and hardware that decide whether a plan can be loaded, and how fast it runs."""

    tensorrt: str
    gpu: str
    compute_capability: str
    """Such as `8.7`."""
    cuda: str | None = None
    """The driver's CUDA version."""
    driver: str | None = None
    l4t: str | None = None
    """NVIDIA's Linux on a Jetson, such as `36.4.3`."""


@dataclass(frozen=True)
class EngineRecord:
    """An engine's sidecar, less the file's own name and hash."""

    parent: dict[str, str]
    """The ONNX file: `file` and `sha256`."""
    machine: Machine
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
    """The command that builds the engine again."""
    model: str | None
    """ModelInfo as JSON, from the ONNX file."""

    def rebuild_here(self, plan: Path) -> str:
        """The same for the plan where it lies now: from the ONNX file beside it, where the one that it was
        built from isn't there any more.
        """
        words = shlex.split(self.rebuild)  # slimdeploy export ONNX … -o PLAN --force
        beside = plan.parent / self.parent["file"]
        if not Path(words[2]).is_file() and beside.is_file():
            words[2] = str(beside)
        words[words.index("-o") + 1] = str(plan)
        return shlex.join(words)

    def info(self, source: str) -> ModelInfo | None:
        return ModelInfo.from_json(self.model, source) if self.model else None


def this_machine(trt: ModuleType, device: Device) -> Machine:
    """The machine as it is now."""
    capability = re.sub(r"^sm_(\d+)(\d)$", r"\1.\2", device.arch)
    return Machine(
        trt.__version__, device.name, capability, _cuda_version(), _driver_version(), _l4t_version()
    )


def write_engine_record(plan: Path, record: EngineRecord) -> None:
    """Describe the plan in its sidecar, its own hash included."""
    artifacts.write_sidecar(plan, {"kind": "engine", **asdict(record)})


def read_engine_record(plan: Path) -> EngineRecord | None:
    """The record of a plan whose hash agrees with it; None for a plan without one (trtexec's, say).

    Raises SlimdeployError where the sidecar is damaged, or the plan isn't the one that it describes.
    """
    path = artifacts.sidecar(plan)
    if not path.is_file():
        return None
    document = artifacts.read_json(path, "description of an engine")
    try:
        values = {field.name: document[field.name] for field in fields(EngineRecord)}
        record = EngineRecord(**{
            **values,
            "machine": Machine(**values["machine"]),
            "batch": tuple(values["batch"]),
            "input_shape": tuple(values["input_shape"]),
        })  # fmt: skip
        wanted = document["sha256"]
    except (KeyError, TypeError) as error:
        raise SlimdeployError(f"{path} is not the description of an engine ({error!r})") from error
    if artifacts.sha256_file(plan) != wanted:
        raise SlimdeployError(
            f"{plan} is damaged, or not the file that {path} describes: {record.rebuild_here(plan)}"
        )
    return record


def check_loadable(plan: Path, record: EngineRecord, here: Machine) -> None:
    """Raises SlimdeployError where the plan was built for another machine: what differs, and the command that
    rebuilds it.
    """
    differing = differences(record, here)
    if differing:
        raise SlimdeployError(
            f"{plan} was built for {' and '.join(differing)}; build it here: {record.rebuild_here(plan)}"
        )


def differences(record: EngineRecord, here: Machine) -> list[str]:
    """Why the plan can't be loaded here, one entry a reason; empty where it can."""
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


def _newer_compatible(record: EngineRecord, here: Machine) -> bool:
    built, now = parse_version(record.machine.tensorrt), parse_version(here.tensorrt)
    return record.version_compatible and built[0] == now[0] and now >= built


def _cuda_version() -> str | None:
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except OSError:  # no driver: nothing to report
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    found = re.search(r"Kernel Module.*? (\d+\.[\d.]+)", path.read_text()) if path.is_file() else None
    return found.group(1) if found else None


def _l4t_version(path: Path = Path("/etc/nv_tegra_release")) -> str | None:
    found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", path.read_text()) if path.is_file() else None
    return f"{found.group(1)}.{found.group(2)}" if found else None
