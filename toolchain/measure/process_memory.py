"""Memory of a process and of files, in MB (2^20 bytes)."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

MB = 2**20

# Bytes per weight in each precision; scales and biases of INT8 networks are not counted.
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def weights_mb(params: int | None, precision: str) -> float | None:
    """Memory of `params` weights in `precision`; None if either is unknown."""
    if params is None or precision not in WEIGHT_BYTES:
        return None
    return params * WEIGHT_BYTES[precision] / MB


def resident_mb() -> float:
    """Current resident memory of this process."""
    status = _status("VmRSS")
    return status if status is not None else peak_resident_mb()


def peak_resident_mb() -> float:
    """Peak resident memory of this process since its start or `reset_peak`.

    Linux's VmHWM is preferred to getrusage, which a child inherits from its parent across exec.
    """
    status = _status("VmHWM")
    if status is not None:
        return status
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def reset_peak() -> None:
    """Set the peak to the current resident memory, if the kernel allows it (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(found[0]) / 1024 if found else None
