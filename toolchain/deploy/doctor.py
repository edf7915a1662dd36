"""What this machine can do, and the command that mends each thing missing.

A check is one function under `@check`; it looks at the machine through `Machine` alone, so that a test can
hand in any machine.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.deploy.machine import Machine
from slimdeploy.toolchain.errors import INSTALL_COMMANDS

OK, NOTE, WARNING, MISSING = "ok", "note", "warning", "missing"
"""MISSING alone stops the main job; a NOTE asks for nothing."""

PROVIDER_TENSORRT = 10
"""Major version of TensorRT that onnxruntime-gpu's provider is linked against (1.20 to 1.31)."""

HOST_LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "safetensors", "PIL", "sklearn")
DEVICE_LIBRARIES = ("PIL", "uvicorn", "starlette", "prometheus_client")
ADD_SWAP = " && sudo ".join(
    ("sudo fallocate -l 4G /swapfile", "chmod 600 /swapfile", "mkswap /swapfile", "swapon /swapfile")
)
LOW_MEMORY_MB, LOW_DISK_MB, NO_DISK_MB = 1024, 2048, 128


@dataclass(frozen=True)
class Finding:
    """`mend` is a command to run as it is."""

    name: str
    status: str
    detail: str
    mend: str | None = None


Check = Callable[[Machine], Iterator[Finding]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Decorator: a function that looks at one thing of a machine."""
    CHECKS.append(function)
    return function


def examine(machine: Machine) -> list[Finding]:
    """All findings, in the order of the checks."""
    return [finding for each in CHECKS for finding in each(machine)]


def works(findings: list[Finding]) -> bool:
    """Whether the machine's main job can run."""
    return all(finding.status != MISSING for finding in findings)


def report(machine: Machine, findings: list[Finding]) -> dict[str, Any]:
    return {
        "role": machine.role,
        "ok": works(findings),
        "findings": [asdict(finding) for finding in findings],
        "device": machine.facts.to_json(),
    }


@check
def system(machine: Machine) -> Iterator[Finding]:
    facts = machine.facts
    python = f"Python {platform.python_version()} on {platform.machine()}"
    yield Finding("system", OK, f"{facts.model}, {python}" if facts.model else python)
    if not facts.is_jetson:
        return
    if facts.l4t is None:
        mount = "/etc/nv_tegra_release:/etc/nv_tegra_release"
        yield Finding(
            "JetPack", WARNING, "no /etc/nv_tegra_release, as in a container", f"docker run -v {mount} …"
        )
    else:
        yield Finding("JetPack", OK, f"{facts.jetpack or 'of an unknown version'}, L4T {facts.l4t}")


@check
def gpu(machine: Machine) -> Iterator[Finding]:
    if machine.cuda is None and machine.gpu is None:
        if machine.facts.is_jetson:
            yield Finding(
                "GPU", WARNING, "the CUDA driver can't be loaded", "sudo apt install nvidia-l4t-cuda"
            )
        else:
            yield Finding("GPU", NOTE, "no NVIDIA GPU: everything runs on the CPU")
        return
    driver = (
        f"driver for CUDA {machine.cuda[0]}.{machine.cuda[1]}" if machine.cuda else "no CUDA driver library"
    )
    yield Finding(
        "GPU",
        OK if machine.cuda else WARNING,
        f"{machine.gpu or 'integrated'}, {driver}",
        None if machine.cuda else "sudo apt install --reinstall libcuda1",
    )


@check
def libraries(machine: Machine) -> Iterator[Finding]:
    for name in HOST_LIBRARIES if machine.role == "host" else DEVICE_LIBRARIES:
        found = machine.library(name)
        mend = INSTALL_COMMANDS[name]
        if found.version:
            yield Finding(name, OK, found.version)
        elif found.error:
            yield Finding(name, MISSING, f"can't be imported: {found.error}", f"{mend} --force-reinstall")
        else:
            needed = MISSING if machine.role == "host" else WARNING
            yield Finding(name, needed, "not installed", mend)


@check
def runtimes(machine: Machine) -> Iterator[Finding]:
    """TensorRT or onnxruntime: a device needs one of them."""
    tensorrt, ort = machine.library("tensorrt"), machine.library("onnxruntime")
    has_gpu = machine.cuda is not None
    if tensorrt.version:
        yield Finding("TensorRT", OK, tensorrt.version)
    elif tensorrt.error:
        yield Finding(
            "TensorRT",
            WARNING,
            f"installed, but can't be imported: {tensorrt.error}",
            _tensorrt_mend(machine),
        )
    elif has_gpu:
        yield Finding(
            "TensorRT", WARNING, "not installed: models run on onnxruntime", _tensorrt_mend(machine)
        )
    if machine.role == "device":
        if ort.version:
            yield Finding("onnxruntime", OK, ort.version)
        else:
            status = NOTE if tensorrt.version and has_gpu else MISSING
            yield Finding(
                "onnxruntime", status, ort.error or "not installed", INSTALL_COMMANDS["onnxruntime"]
            )
    if tensorrt.version and has_gpu:
        bindings = [name for name in ("pycuda", "cuda") if machine.library(name).version]
        if bindings:
            yield Finding("CUDA from Python", OK, f"{bindings[0]} {machine.library(bindings[0]).version}")
        else:
            yield Finding(
                "CUDA from Python",
                WARNING,
                "neither pycuda nor cuda-python: engines can't be run",
                INSTALL_COMMANDS["pycuda"],
            )


@check
def providers(machine: Machine) -> Iterator[Finding]:
    if not machine.library("onnxruntime").version:
        return
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in machine.providers)
    yield Finding("onnxruntime providers", OK, names)
    if {"onnxruntime", "onnxruntime-gpu"} <= machine.packages:
        yield Finding(
            "onnxruntime",
            WARNING,
            "onnxruntime and onnxruntime-gpu overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        )
    version = machine.library("tensorrt").version
    if "TensorrtExecutionProvider" in machine.providers and version:
        major = int(version.split(".")[0])
        if major != PROVIDER_TENSORRT:
            yield Finding(
                "onnxruntime with TensorRT",
                WARNING,
                f"its provider needs TensorRT {PROVIDER_TENSORRT}, "
                f"{version} is installed; slimdeploy's own engines are not affected",
                f"pip install 'tensorrt>={PROVIDER_TENSORRT}.3,<{PROVIDER_TENSORRT + 1}'",
            )
    if "CUDAExecutionProvider" not in machine.providers and machine.cuda and not machine.facts.is_jetson:
        yield Finding(
            "onnxruntime on the GPU",
            NOTE,
            "onnxruntime is the CPU build",
            "pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
        )


@check
def compiler(machine: Machine) -> Iterator[Finding]:
    if machine.nvcc is None:
        if machine.cuda:
            yield Finding(
                "nvcc", NOTE, "not installed: NVRTC compiles the kernels", "sudo apt install cuda-toolkit"
            )
    elif machine.program("nvcc"):
        yield Finding("nvcc", OK, machine.nvcc)
    else:
        folder = Path(machine.nvcc).parent
        yield Finding("nvcc", NOTE, f"{machine.nvcc} is not on the PATH", f'export PATH="{folder}:$PATH"')


@check
def power(machine: Machine) -> Iterator[Finding]:
    facts = machine.facts
    if facts.power_mode is None:
        return
    best = next((mode for mode in facts.power_modes if "MAXN" in mode), None)
    if best in (None, facts.power_mode):
        yield Finding("power mode", OK, facts.power_mode)
    else:
        yield Finding(
            "power mode",
            NOTE,
            f"{facts.power_mode}; {best} is the fastest",
            f"sudo nvpmodel -m {best.split()[0]} && sudo jetson_clocks",
        )


@check
def memory(machine: Machine) -> Iterator[Finding]:
    facts = machine.facts
    detail = f"{facts.free_mb:,.0f} MiB of {facts.memory_mb:,.0f} MiB free"
    if facts.free_mb >= LOW_MEMORY_MB:
        yield Finding("memory", OK, detail)
    else:
        stop_desktop = (
            "sudo systemctl isolate multi-user.target" if facts.is_jetson else "ps aux --sort=-rss | head"
        )
        yield Finding("memory", WARNING, f"{detail}: building an engine can fail", stop_desktop)
    if facts.is_jetson and facts.swap_mb == 0:
        yield Finding("swap", WARNING, "none: building an engine can be killed", ADD_SWAP)
    elif facts.swap_mb:
        yield Finding("swap", OK, f"{facts.swap_mb:,.0f} MiB")


@check
def disk(machine: Machine) -> Iterator[Finding]:
    detail = f"{machine.disk_free_mb:,.0f} MiB free at {machine.disk}"
    if machine.disk_free_mb >= LOW_DISK_MB:
        yield Finding("disk", OK, detail)
    else:
        yield Finding(
            "disk", MISSING if machine.disk_free_mb < NO_DISK_MB else WARNING, detail, "sudo apt clean"
        )


@check
def remote(machine: Machine) -> Iterator[Finding]:
    for name in ("ssh", "ssh-keygen"):
        if not machine.program(name):
            what = "deploy --host needs it" if name == "ssh" else "signatures need it"
            yield Finding(name, WARNING, f"not installed: {what}", "sudo apt install openssh-client")


def _tensorrt_mend(machine: Machine) -> str:
    return "sudo apt install nvidia-jetpack" if machine.facts.is_jetson else "pip install 'slimdeploy[gpu]'"
