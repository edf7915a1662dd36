"""Check whether onnxruntime's providers can be loaded: it lists all that it was built with."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
from pathlib import Path

from slimdeploy.toolchain.errors import ONNXRUNTIME_ON_GPU

TENSORRT = 10
"""Major version of TensorRT that onnxruntime-gpu's provider is linked to (1.20 to 1.31)."""
INSTALL_TENSORRT = f"pip install 'tensorrt>={TENSORRT}.3,<{TENSORRT + 1}'"

LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}


@functools.cache
def load_error(provider: str) -> str | None:
    """Why the library of `provider` can't be loaded, e.g. `libcublasLt.so.13: cannot open shared object file:
    No such file or directory`; None if it can, or has no library.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if provider not in LIBRARIES or spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "capi" / LIBRARIES[provider]
    if not file.is_file():
        return None
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints missing libraries
            onnxruntime.preload_dlls()  # CUDA libraries installed with torch or by pip
    return library_error(file)


def library_error(file: Path) -> str | None:
    """The dynamic linker's error for a library; None if it loads."""
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        return " ".join(str(error).split())
    return None


def mend(error: str) -> str:
    """The command that installs what is missing according to `load_error`."""
    return INSTALL_TENSORRT if "libnvinfer" in error else ONNXRUNTIME_ON_GPU
