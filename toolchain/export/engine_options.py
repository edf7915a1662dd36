"""Options for building a TensorRT engine, as plain data without TensorRT."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.checks import MAX_BATCH
from slimdeploy.toolchain.declared import Form, check_declared, option
from slimdeploy.toolchain.errors import SlimdeployError

HARDWARE_LEVELS = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}


def parse_batch(text: str) -> tuple[int, int, int]:
    """`8` → (8, 8, 8); `1,8,64` → itself. Raises ValueError for anything else."""
    numbers = [int(part) for part in text.split(",")]
    if len(numbers) == 1:
        numbers *= 3
    least, best, greatest = numbers
    return least, best, greatest


def _written(batch: tuple[int, int, int]) -> str:
    return ",".join(map(str, dict.fromkeys(batch)))


BATCH = Form(parse_batch, "one number, or three as in 1,8,64", "MIN,OPT,MAX", _written)


@dataclass(frozen=True)
class EngineOptions:
    """Options for building a plan. Raises SlimdeployError for contradicting values."""

    batch: tuple[int, int, int] = option(
        (1, 1, 1), "Engine: batch sizes, or one number for all three.", form=BATCH
    )
    """Minimum, optimal and maximum batch size."""
    workspace_mb: int | None = option(None, "Engine: maximum workspace memory, MiB.", least=1, unset="all")
    optimization_level: int | None = option(
        None,
        "Engine: builder optimization level; 0 builds fastest, 5 searches longest.",
        least=0,
        most=5,
        unset="3",
    )
    tf32: bool = option(False, "Engine: allow TF32 in FP32 layers.")
    dla: int | None = option(None, "Engine: index of the DLA core to build for.", least=0)
    """DLA core; layers that it can't run use the GPU. It takes no range of batch sizes."""
    version_compatible: bool = option(
        False, "Engine: can be loaded by later TensorRT versions of the same major version."
    )
    hardware_compatible: str | None = option(
        None,
        "Engine: GPUs that can run it: Ampere and later, or the same compute capability.",
        choices=HARDWARE_LEVELS,
    )

    def __post_init__(self) -> None:
        check_declared(self)
        least, best, greatest = self.batch
        if not 1 <= least <= best <= greatest <= MAX_BATCH:
            raise SlimdeployError(
                f"`batch` {least},{best},{greatest}: expected 1 ≤ MIN ≤ OPT ≤ MAX ≤ {MAX_BATCH}"
            )
        if self.dla is not None and least != greatest:  # every layer would use the GPU
            raise SlimdeployError(
                f"`dla`: a DLA runs one batch size only, not {least},{best},{greatest}: pass `batch` {best}"
            )
