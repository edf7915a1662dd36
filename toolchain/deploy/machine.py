"""Inputs of the checks of `slimdeploy doctor`: libraries, programs, drivers and facts of this machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.toolchain.deploy.root import default_root
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.machine import sysfs
from slimdeploy.toolchain.machine.cpu import Cpu, this_cpu
from slimdeploy.toolchain.machine.cuda import cuda_version
from slimdeploy.toolchain.machine.sysfs import DeviceFacts
from slimdeploy.toolchain.runtime.providers import load_error
from slimdeploy.toolchain.torchvision import import_torchvision

if TYPE_CHECKING:
    from slimdeploy.toolchain.deploy.installed import Deployed


@dataclass(frozen=True)
class Library:
    """A library: its version, or why it can't be imported; neither if it isn't installed."""

    version: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Machine:
    """All inputs of the checks."""

    role: str
    """`host` trains and exports, `device` runs deployed models."""
    facts: DeviceFacts
    library: Callable[[str], Library]
    packages: frozenset[str]
    """Names of the distributions installed by pip."""
    providers: tuple[str, ...]
    """onnxruntime's."""
    provider_errors: dict[str, str]
    """Those whose library can't be loaded, with the reason."""
    closed_environment: Path | None
    """Path of the virtual environment, if it excludes system packages."""
    program: Callable[[str], str | None]
    """Path of a program in PATH."""
    gpu: str | None
    """Name and driver from nvidia-smi."""
    cuda: tuple[int, int] | None
    """The newest CUDA version supported by the driver."""
    nvcc: str | None
    """Path of nvcc, even if it isn't in PATH."""
    disk_free_mb: float
    disk: Path
    cpu: Cpu
    deployed: Deployed | str | None = None
    """The deployed version, or why it can't be read."""


def this_machine(role: str | None = None) -> Machine:
    """The current machine. `role` None: device on a Jetson or without torch, else host."""
    facts = sysfs.read_facts()
    if role is None:
        role = "device" if facts.is_jetson or not importlib.util.find_spec("torch") else "host"
    known: dict[str, Library] = {}

    def library(name: str) -> Library:
        if name not in known:
            known[name] = _import(name)
        return known[name]

    disk = next(folder for folder in (default_root(), *default_root().parents) if folder.is_dir())
    return Machine(
        role=role,
        facts=facts,
        library=library,
        packages=frozenset(str(d.metadata["Name"]) for d in importlib.metadata.distributions()),
        providers=(found := _providers(library)),
        provider_errors={name: error for name in found if (error := load_error(name))},
        closed_environment=_closed_environment(),
        program=shutil.which,
        gpu=_nvidia_smi(),
        cuda=cuda_version(),
        nvcc=shutil.which("nvcc") or _existing("/usr/local/cuda/bin/nvcc"),
        disk_free_mb=shutil.disk_usage(disk).free / 2**20,
        disk=disk,
        cpu=this_cpu(),
        deployed=_deployed(),
    )


def _deployed() -> Deployed | str | None:
    try:
        from slimdeploy.toolchain.deploy.installed import deployed
        from slimdeploy.toolchain.deploy.store import Store

        return deployed(Store(default_root()))
    except ModuleNotFoundError as error:  # a bare Python: bootstrap asks before it installs anything
        return f"unknown: {error}" if default_root().exists() else None
    except SlimdeployError as error:
        return str(error)


def _import(name: str) -> Library:
    try:
        module = import_torchvision() if name == "torchvision" else importlib.import_module(name)
    except ModuleNotFoundError as error:
        return Library() if (error.name or "").split(".")[0] == name else Library(error=str(error))
    except Exception as error:  # a library with incompatible dependencies may raise any error
        return Library(error=" ".join(f"{type(error).__name__}: {error}".split())[:200])
    return Library(getattr(module, "__version__", None) or _installed_version(name))


def _installed_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def _providers(library: Callable[[str], Library]) -> tuple[str, ...]:
    if not library("onnxruntime").version:
        return ()
    return tuple(importlib.import_module("onnxruntime").get_available_providers())


def _closed_environment() -> Path | None:
    """The virtual environment, if its pyvenv.cfg excludes system packages (PEP 405)."""
    file = Path(sys.prefix) / "pyvenv.cfg"
    if sys.prefix == sys.base_prefix or not file.is_file():
        return None
    settings = dict(line.lower().split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    shared = {key.strip(): value.strip() for key, value in settings.items()}
    return None if shared.get("include-system-site-packages") == "true" else Path(sys.prefix)


def _nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; ".join(done.stdout.strip().splitlines()) or None if done.returncode == 0 else None


def _existing(path: str) -> str | None:
    return path if Path(path).is_file() else None
