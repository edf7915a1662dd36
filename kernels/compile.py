"""Compile the kernels for a GPU or, to check them without one, for the host; compiled kernels are cached.

Uses nvcc if installed, else NVRTC (through cuda-python). One file per source and architecture in
`~/.cache/slimdeploy/kernels`, named by the hash of source, architecture and toolkit.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from slimdeploy.toolchain.artifacts import cache_folder, write_bytes
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.device import Device

FOLDER = Path(__file__).parent
STANDARD = "c++17"


class Toolkit(NamedTuple):
    """A compiler; `version` is part of the key of its output."""

    version: str
    compile: Callable[[str, str], bytes]
    """(source text, architecture) → cubin or shared library."""


def kernel(device: Device, source: str, name: str) -> Any:
    """The kernel `name` of `<source>.cu`, compiled for `device` and loaded, for `Device.launch`."""
    return device.load_kernel(image(source, device.arch), name)


def image(source: str, arch: str, *, toolkit: Toolkit | None = None, cache: Path | None = None) -> bytes:
    """`<source>.cu` compiled for `arch`, e.g. `sm_87` or `host`, from the cache if possible.

    Raises SlimdeployError if there is no compiler, or it fails for the source or the architecture.
    """
    text = source_text(source)
    toolkit = toolkit or find_toolkit(arch)
    digest = hashlib.sha256("\0".join((text, arch, toolkit.version)).encode()).hexdigest()
    kept = (cache or cache_folder("kernels")) / f"{source}-{arch}-{digest[:16]}"
    if kept.is_file():
        return kept.read_bytes()
    compiled = toolkit.compile(text, arch)
    write_bytes(kept, compiled)
    return compiled


def source_text(source: str) -> str:
    """The text of `<source>.cu` with the headers of this folder inserted."""
    text = (FOLDER / f"{source}.cu").read_text()
    return re.sub(r'^#include "(\w+\.h)"$', lambda found: (FOLDER / found[1]).read_text(), text, flags=re.M)


def find_toolkit(arch: str) -> Toolkit:
    """The compiler for `arch` on this machine: g++ for `host`; nvcc or else NVRTC for a GPU."""
    if arch == "host":
        return host_toolkit()
    if nvcc := shutil.which("nvcc") or _existing("/usr/local/cuda/bin/nvcc"):
        return nvcc_toolkit(nvcc)
    return nvrtc_toolkit()


@functools.cache
def nvcc_toolkit(nvcc: str = "nvcc") -> Toolkit:
    def compile_cubin(text: str, arch: str) -> bytes:
        return _run_compiler([nvcc, "-cubin", f"-arch={arch}", f"-std={STANDARD}"], text, "cu", arch)

    return Toolkit(_run([nvcc, "--version"]), compile_cubin)


@functools.cache
def host_toolkit(*flags: str) -> Toolkit:
    """g++ with host.h, which turns the grid into loops. `flags` are added to the command line."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise SlimdeployError("compiling the kernels for the host needs g++: sudo apt install g++")
    command = [compiler, "-shared", "-fPIC", "-O2", f"-std={STANDARD}", "-Wall", "-Wextra", "-Werror",
               "-Wno-unknown-pragmas", *flags, "-include", str(FOLDER / "host.h")]  # fmt: skip

    def compile_library(text: str, arch: str) -> bytes:
        return _run_compiler(command, text, "cpp", arch)

    header = (FOLDER / "host.h").read_text()
    return Toolkit("\0".join((_run([compiler, "--version"]), *flags, header)), compile_library)


@functools.cache
def nvrtc_toolkit() -> Toolkit:
    """NVIDIA's compiler as a library; it needs neither a GPU nor a driver."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # the bindings raise their own class where the library is missing
        raise SlimdeployError(
            "compiling the CUDA kernels needs nvcc (the CUDA toolkit, in PATH) or NVRTC "
            "(pip install cuda-bindings nvidia-cuda-nvrtc)"
        ) from error
    _check_nvrtc(nvrtc, status)

    def compile_cubin(text: str, arch: str) -> bytes:
        program = _nvrtc(nvrtc, nvrtc.nvrtcCreateProgram, text.encode(), b"kernel.cu", 0, [], [])
        try:
            options = [f"--gpu-architecture={arch}".encode(), f"--std={STANDARD}".encode()]
            (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
            if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                log = b" " * _nvrtc(nvrtc, nvrtc.nvrtcGetProgramLogSize, program)
                _nvrtc(nvrtc, nvrtc.nvrtcGetProgramLog, program, log)
                raise _refused("NVRTC", arch, log.rstrip(b"\0 ").decode())
            cubin = b" " * _nvrtc(nvrtc, nvrtc.nvrtcGetCUBINSize, program)
            _nvrtc(nvrtc, nvrtc.nvrtcGetCUBIN, program, cubin)
            return cubin
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    return Toolkit(f"NVRTC {major}.{minor}", compile_cubin)


def _run_compiler(command: list[str], text: str, ending: str, arch: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / f"kernel.{ending}", Path(folder) / "image"
        source.write_text(text)
        done = subprocess.run([*command, "-o", str(result), str(source)], capture_output=True, text=True)
        if done.returncode:
            raise _refused(Path(command[0]).name, arch, done.stderr + done.stdout)
        return result.read_bytes()


def _refused(compiler: str, arch: str, log: str) -> SlimdeployError:
    lines = [line for line in log.splitlines() if "error" in line.lower() or "fatal" in line.lower()]
    reason = " ".join((lines or log.splitlines() or ["no message"])[0].split())
    return SlimdeployError(f"{compiler} can't compile the kernels for {arch}: {reason[:300]}")


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _existing(path: str) -> str | None:
    return path if Path(path).is_file() else None


def _nvrtc(nvrtc: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    status, *results = function(*arguments)
    _check_nvrtc(nvrtc, status)
    return results[0] if results else None


def _check_nvrtc(nvrtc: Any, status: Any) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise SlimdeployError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
