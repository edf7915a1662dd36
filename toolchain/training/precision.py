"""The arithmetic of training, and whether this machine supports it natively."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from slimdeploy.toolchain.errors import SlimdeployError

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: str) -> str:
    """`auto` becomes `bf16` if the hardware multiplies it natively, else `fp32`.

    Raises SlimdeployError for `fp16` on a CPU, where it is twenty times slower than `fp32`.
    """
    if precision == "fp16" and device == "cpu":
        raise SlimdeployError("precision fp16 needs a CUDA GPU: use bf16 or fp32 on the CPU")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _cpu_flags() & {"avx512_bf16", "amx_bf16"} else "fp32"


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager[None]:
    """Autocast to bfloat16 for `bf16`, to float16 for `fp16`; no autocast for `fp32`."""
    if precision in HALF_TYPES:
        return torch.autocast(device, dtype=HALF_TYPES[precision])
    return contextlib.nullcontext()


def _cpu_flags() -> set[str]:
    """The CPU flags in /proc/cpuinfo; empty if there are none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
