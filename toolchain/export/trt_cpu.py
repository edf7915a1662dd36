"""NVIDIA's ONNX parser and builder on a machine without an NVIDIA GPU: to check an export, not to run it.

Two wheels from PyPI contain the parts. `tensorrt-cu13-bindings` has TensorRT's Python bindings without
libraries; `onnxruntime-ep-nv-tensorrt-rtx-cu13` contains the TensorRT-RTX builder and ONNX parser, which need
no CUDA driver to parse a model or to build a plan ahead of time. The bindings load `libnvinfer.so.11` and its
companions by name and need six C symbols; the RTX libraries export all but one of them under the same name.
Empty libraries with the required names connect the two.

This proves that the parser accepts the operators, types and Q/DQ placement, and that the strongly typed
network builds. It can't run the plan, or predict tactics, speed or results of a device.
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
_STUBS = {  # library name that the bindings need -> C source of an empty library
    "libnvinfer.so.11": "",
    "libnvonnxparser.so.11": "",
    "libnvinfer_plugin.so.11": "int initLibNvInferPlugins(void *logger, const char *space) { return 1; }",
}


def load(workdir: Path | None = None) -> types.ModuleType:
    """Return TensorRT's Python module (11.4), able to parse and build without a GPU.

    The empty libraries are compiled with `cc` into `workdir` (default: a temporary folder, removed after
    loading). `sys.modules["tensorrt"]` is not changed: pass the returned module on, or put it there. Raises
    SlimdeployError if a wheel or the compiler is missing, with the command that installs it.
    """
    rtx = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if rtx is None or not rtx.submodule_search_locations or not importlib.util.find_spec("tensorrt_bindings"):
        raise SlimdeployError(f"parsing with TensorRT without a GPU needs two wheels: {WHEELS}")
    if importlib.util.find_spec("tensorrt_libs") is not None:  # the full TensorRT is installed
        return importlib.import_module("tensorrt_bindings")
    folder = Path(rtx.submodule_search_locations[0])
    # Loaded globally and before the bindings, which then find their symbols here.
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
