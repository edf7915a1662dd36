"""NVIDIA's own ONNX parser and builder on a machine without an NVIDIA GPU: to check an export, not to run it.

Two wheels from PyPI hold the parts. `tensorrt-cu13-bindings` has TensorRT's Python bindings and no libraries;
`onnxruntime-ep-nv-tensorrt-rtx-cu13` bundles the TensorRT-RTX builder and ONNX parser, which need no CUDA
driver to parse a model or to build a plan ahead of time. The bindings ask the dynamic linker for
`libnvinfer.so.11` and its companions by name and for six C symbols, all but one of which the RTX libraries
export under the same name. So empty libraries with the names asked for tie the two together.

What it proves: the parser accepts the operators, types and Q/DQ placement, and the strongly typed network
builds. What it can't: run the plan, or say which tactics, speed or numbers a device will have.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import subprocess
import tempfile
import types
from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError

WHEELS = "pip install tensorrt-cu13-bindings==11.4.0.106 && " \
         "pip install --no-deps onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"  # fmt: skip
_RTX_LIBRARIES = ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")
_STUBS = {  # name that the bindings link against -> C source of the library that stands in for it
    "libnvinfer.so.11": "",
    "libnvonnxparser.so.11": "",
    "libnvinfer_plugin.so.11": "int initLibNvInferPlugins(void *logger, const char *space) { return 1; }",
}


def load(workdir: Path | None = None) -> types.ModuleType:
    """Return TensorRT's Python module (11.4), able to parse and build without a GPU.

    The stand-in libraries are compiled with `cc` into `workdir` (default: a temporary folder, removed once
    they are loaded). `sys.modules["tensorrt"]` is left alone: hand the module on, or put it there.
    Raises SlimdeployError where a wheel or the compiler is missing, with the command that brings it.
    """
    rtx = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if rtx is None or not rtx.submodule_search_locations or not importlib.util.find_spec("tensorrt_bindings"):
        raise SlimdeployError(f"parsing with TensorRT without a GPU needs two wheels: {WHEELS}")
    if importlib.util.find_spec("tensorrt_libs") is not None:  # the full TensorRT: nothing to stand in for
        return importlib.import_module("tensorrt_bindings")
    folder = Path(rtx.submodule_search_locations[0])
    # Global, and before the bindings: that is where their symbols are then looked up.
    for name in _RTX_LIBRARIES:
        _open(next(folder.glob(f"{name}.*"), folder / name))
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="slimdeploy-trt-") as temporary:
            _open_stubs(Path(temporary))
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        _open_stubs(workdir)
    return importlib.import_module("tensorrt_bindings")


def _open_stubs(workdir: Path) -> None:
    for soname, source in _STUBS.items():
        library, c_file = workdir / soname, workdir / f"{soname}.c"
        c_file.write_text(f"{source}\n")
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(library), str(c_file)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise SlimdeployError("no C compiler (cc): sudo apt install gcc libc6-dev") from None
        except subprocess.CalledProcessError as error:
            raise SlimdeployError(f"cc could not build {soname}: {' '.join(error.stderr.split())}") from error
        _open(library)


def _open(library: Path) -> None:
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise SlimdeployError(f"cannot load NVIDIA's library {library.name}: {error}") from error
