"""What `evaluate` can be told, with defaults that work."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.checks import MAX_THREADS
from slimdeploy.toolchain.declared import check_declared, option

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate on, and what runs the model."""

    limit: int | None = option(None, "Use a class-balanced subset of N test images.", least=1)
    backend: str = option(
        "auto", "Runtime: torch, onnxruntime, tensorrt, or auto: chosen by the type of the file."
    )
    accuracy_only: bool = option(False, "For an engine: preprocess on the GPU and report only the accuracy.")
    device: str = option("auto", "Device to compute on.", choices=DEVICES)
    threads: int | None = option(None, "CPU threads.", least=1, most=MAX_THREADS, unset="all cores")

    def __post_init__(self) -> None:
        check_declared(self)
