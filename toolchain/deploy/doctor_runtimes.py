"""The checks of `slimdeploy doctor` for libraries: those of the commands, and the runtimes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from slimdeploy.toolchain.deploy.findings import MISSING, NOTE, OK, WARNING, Finding
from slimdeploy.toolchain.deploy.machine import Machine
from slimdeploy.toolchain.errors import INSTALL_COMMANDS, ONNXRUNTIME_ON_GPU
from slimdeploy.toolchain.runtime.providers import INSTALL_TENSORRT, TENSORRT, mend

HOST_LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "safetensors", "PIL", "sklearn")
"""Required for training and export."""
NEEDED_BY = {
    "PIL": "needed by classify for image files",
    **dict.fromkeys(("anyio", "h11", "prometheus_client", "starlette", "uvicorn"), "needed by serve"),
}
"""Required on every machine."""
HOST_EXTRAS = {
    "tensorboard": "needed by train for TensorBoard",
    "optuna": "needed by sweep",
    "resvg_py": "needed by report --format md",
}
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""pip's name of libraries that are imported by another name."""
SYSTEM_TENSORRT = "sudo apt install python3-libnvinfer"
"""JetPack's TensorRT for the system's Python."""


def libraries(machine: Machine) -> Iterator[Finding]:
    """Libraries imported by the commands."""
    is_host = machine.role == "host"
    for name in HOST_LIBRARIES if is_host else ():
        yield _library(machine, name, MISSING, "not installed")
    for name, why in {**NEEDED_BY, **(HOST_EXTRAS if is_host else {})}.items():
        if not (is_host and name in HOST_LIBRARIES):
            yield _library(machine, name, NOTE if name in HOST_EXTRAS else WARNING, f"not installed: {why}")


def _library(machine: Machine, name: str, where_missing: str, said: str) -> Finding:
    found = machine.library(name)
    if found.version:
        return Finding(name, OK, found.version)
    if found.error:
        mend = f"pip install --force-reinstall {DISTRIBUTIONS.get(name, name)}"
        return Finding(name, MISSING, f"can't be imported: {found.error}", mend)
    return Finding(name, where_missing, said, INSTALL_COMMANDS[name])


def runtimes(machine: Machine) -> Iterator[Finding]:
    """TensorRT or onnxruntime: a device needs one of them."""
    tensorrt, ort = machine.library("tensorrt"), machine.library("onnxruntime")
    if tensorrt.version:
        yield Finding("TensorRT", OK, tensorrt.version)
    elif tensorrt.error:
        said = f"installed, but can't be imported: {tensorrt.error}"
        yield Finding("TensorRT", WARNING, said, _tensorrt_mend(machine))
    elif machine.cuda is not None:
        said = "not installed: models run on onnxruntime"
        if machine.facts.is_jetson and machine.closed_environment:
            said = "not visible: this virtual environment excludes system packages, such as TensorRT"
        yield Finding("TensorRT", WARNING, said, _tensorrt_mend(machine))
    if machine.role != "device":
        return
    if ort.version:
        yield Finding("onnxruntime", OK, ort.version)
    else:
        status = NOTE if tensorrt.version and machine.cuda is not None else MISSING
        said = f"can't be imported: {ort.error}" if ort.error else "not installed"
        yield Finding("onnxruntime", status, said, INSTALL_COMMANDS["onnxruntime"])


def bindings(machine: Machine) -> Iterator[Finding]:
    """CUDA bindings for Python, needed to run engines."""
    if not machine.library("tensorrt").version or machine.cuda is None:
        return
    for name in ("pycuda", "cuda"):
        if machine.library(name).version:
            yield Finding("CUDA from Python", OK, f"{name} {machine.library(name).version}")
            return
    said = "neither pycuda nor cuda-python: engines can't be run"
    yield Finding("CUDA from Python", WARNING, said, INSTALL_COMMANDS["pycuda"])


def providers(machine: Machine) -> Iterator[Finding]:
    """onnxruntime's providers: one is listed only if its libraries can be loaded."""
    if not machine.library("onnxruntime").version:
        return
    short = {name: name.removesuffix("ExecutionProvider") for name in machine.providers}
    broken = {name: error for name, error in machine.provider_errors.items() if name in short}
    yield Finding("onnxruntime providers", OK, ", ".join(short[n] for n in short if n not in broken))
    two = {"onnxruntime", "onnxruntime-gpu"} <= machine.packages
    if two:
        said = "onnxruntime and onnxruntime-gpu overwrite each other's files"
        yield Finding("onnxruntime", WARNING, said, ONNXRUNTIME_ON_GPU)
    for name, error in broken.items():
        said = f"its library can't be loaded: {error}"
        yield Finding(f"onnxruntime's {short[name]} provider", WARNING, said, mend(error))
    version = machine.library("tensorrt").version
    wrong = version is not None and int(version.split(".")[0]) != TENSORRT
    if "TensorrtExecutionProvider" in short and wrong and "TensorrtExecutionProvider" not in broken:
        said = (
            f"its provider needs TensorRT {TENSORRT}, {version} is installed; "
            "slimdeploy's own engines are not affected"
        )
        yield Finding("onnxruntime with TensorRT", WARNING, said, INSTALL_TENSORRT)
    cpu_build = "CUDAExecutionProvider" not in machine.providers
    if cpu_build and machine.cuda and not machine.facts.is_jetson and not two:
        yield Finding("onnxruntime on the GPU", NOTE, "onnxruntime is the CPU build", ONNXRUNTIME_ON_GPU)


def compiler(machine: Machine) -> Iterator[Finding]:
    if machine.nvcc is None:
        if machine.cuda:
            said = "not installed: NVRTC compiles the kernels"
            yield Finding("nvcc", NOTE, said, "sudo apt install cuda-toolkit")
    elif machine.program("nvcc"):
        yield Finding("nvcc", OK, machine.nvcc)
    else:
        folder = Path(machine.nvcc).parent
        yield Finding("nvcc", NOTE, f"{machine.nvcc} is not on the PATH", f'export PATH="{folder}:$PATH"')


def _tensorrt_mend(machine: Machine) -> str:
    """On a Jetson TensorRT comes with JetPack: a virtual environment must include system packages."""
    if not machine.facts.is_jetson:
        return "pip install 'slimdeploy[gpu]'"
    if machine.closed_environment is None:
        return SYSTEM_TENSORRT
    let_in = f"python3 -m venv --system-site-packages {shlex.quote(str(machine.closed_environment))}"
    return f"{SYSTEM_TENSORRT} && {let_in}"
