"""The CUDA driver of this machine."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from slimdeploy.toolchain.machine.sysfs import ROOT, read_text


def cuda_version() -> tuple[int, int] | None:
    """The newest CUDA version supported by the driver; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    # CUDA driver API: 1000 × major + 10 × minor
    return version.value // 1000, version.value % 1000 // 10


def driver_version(root: Path = ROOT) -> str | None:
    """Version of NVIDIA's kernel module, e.g. `570.86.15`."""
    text = read_text(root / "proc/driver/nvidia/version") or ""
    found = re.search(r"Kernel Module.*? (\d+\.[\d.]+)", text)
    return found[1] if found else None
