"""Optional figures of a GPU session about its last run, besides the host's clock.

A session may have these attributes; if one is missing or None, it is not recorded: `gpu_ms` (the network
alone, between two CUDA events), `enqueue_ms` (host time to launch it), `copy_in_ms` and `copy_out_ms` (CUDA
events), `device_bytes` (allocated by it: activations, input, output) and `device_memory_mb` (a dict by use:
plan, context, workspace).
"""

from __future__ import annotations

from typing import Any

from slimdeploy.toolchain.measure.process_memory import MB
from slimdeploy.toolchain.runtime.session import Session

RUN_FIGURES = ("gpu_ms", "enqueue_ms", "copy_in_ms", "copy_out_ms")
LAUNCH_BOUND = 0.9
"""If enqueueing takes this share of the GPU time or more, the GPU waits for the host."""


def available(session: Session) -> tuple[str, ...]:
    """The RUN_FIGURES that `session` has, after its first run."""
    return tuple(name for name in RUN_FIGURES if getattr(session, name, None) is not None)


def device_memory(session: Session) -> dict[str, float]:
    """Device memory in MB by use, if the session reports it; empty on a CPU."""
    told: dict[str, Any] = dict(getattr(session, "device_memory_mb", None) or {})
    if (nbytes := getattr(session, "device_bytes", None)) is not None:
        told["session"] = nbytes / MB
    return {name: float(value) for name, value in told.items()}


def enqueue_ratio(figures: dict[str, dict[str, float]]) -> float | None:
    """Median enqueue time ÷ median GPU time; None if either wasn't measured."""
    if "enqueue_ms" not in figures or "gpu_ms" not in figures:
        return None
    return figures["enqueue_ms"]["p50"] / figures["gpu_ms"]["p50"]
