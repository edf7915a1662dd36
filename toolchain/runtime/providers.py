"""Whether onnxruntime's providers can be loaded: it lists those it was built with, whatever they miss."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
from pathlib import Path

from slimdeploy.toolchain.errors import ONNXRUNTIME_ON_GPU

TENSORRT = 10
"""Major version of TensorRT that onnxruntime-gpu's provider is linked against (1.20 to 1.31)."""
INSTALL_TENSORRT = f"pip install 'tensorrt>={TENSORRT}.3,<{TENSORRT + 1}'"

LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}


@functools.cache
def load_error(provider: str) -> str | None:
    """Why the library of `provider` can't be loaded, such as `libcublasLt.so.13: cannot open shared object
    file: No such file or directory`; None where it can, or there is no library of its own.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if provider not in LIBRARIES or spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "capi" / LIBRARIES[provider]
    if not file.is_file():
        return None
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it doesn't find
            onnxruntime.preload_dlls()  # CUDA libraries that torch or pip brought along
    return library_error(file)


def library_error(file: Path) -> str | None:
    """What the dynamic linker says of a library; None where it loads."""
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        return " ".join(str(error).split())
    return None


def mend(error: str) -> str:
    """The command that brings what is missing by `load_error`."""
    return INSTALL_TENSORRT if "libnvinfer" in error else ONNXRUNTIME_ON_GPU
