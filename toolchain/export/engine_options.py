"""How to build a TensorRT engine: plain data, with no TensorRT behind it."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError

HARDWARE_LEVELS = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True)
class EngineOptions:
    """How to build a plan. Raises SlimdeployError for values that contradict."""

    batch: tuple[int, int, int] = (1, 1, 1)
    """Least batch size, the one to optimise for, and the greatest."""
    workspace_mb: int | None = None
    """MiB that a layer may use as scratch memory; None is TensorRT's default (all there is)."""
    optimization_level: int | None = None
    """0 (fast build) to 5; None is TensorRT's default (3)."""
    tf32: bool = False
    """Let FP32 layers round to TF32, which TensorRT does unless told otherwise."""
    dla: int | None = None
    """Deep-learning accelerator to build for, with layers that it can't run on the GPU."""
    version_compatible: bool = False
    """A plan that later TensorRTs of the same major version load too."""
    hardware_compatible: str | None = None
    """A plan for more GPUs than this one: a key of HARDWARE_LEVELS."""

    def __post_init__(self) -> None:
        least, best, greatest = self.batch
        if not 1 <= least <= best <= greatest:
            raise SlimdeployError(f"--batch {least},{best},{greatest}: 1 ≤ least ≤ best ≤ greatest is needed")
        if self.hardware_compatible not in (None, *HARDWARE_LEVELS):
            raise SlimdeployError(
                f"hardware compatibility {self.hardware_compatible!r}; known: {', '.join(HARDWARE_LEVELS)}"
            )


def parse_batch(text: str) -> tuple[int, int, int]:
    """`8` → (8, 8, 8); `1,8,64` → itself. Raises SlimdeployError for anything else."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise SlimdeployError(f"--batch {text}: one number, or three as in 1,8,64")
    return numbers[0], numbers[1], numbers[2]
