"""Options of `bench` and `evaluate`, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from slimdeploy.toolchain.checks import MAX_BATCH, MAX_SEED, MAX_THREADS
from slimdeploy.toolchain.declared import Form, check_declared, option
from slimdeploy.toolchain.errors import SlimdeployError

DEVICES = ("auto", "cpu", "cuda")
LOOKS = 3
"""Maximum number of checks of the intervals. More launches are better than longer ones, because processes
differ more than the runs within a process.
"""


def parse_share(text: str) -> float:
    """`2%` or `0.02` → 0.02; raises ValueError for anything that isn't between 0 and 1."""
    share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not 0 < share < 1:
        raise ValueError(text)
    return share


def parse_sizes(text: str) -> tuple[int, ...]:
    """`1,8,64` → (1, 8, 64); raises ValueError for anything but batch sizes."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= MAX_BATCH for part in parts):
        raise ValueError(text)
    return tuple(sorted({int(part) for part in parts}))


SHARE = Form(
    parse_share, "a share between 0 and 100%, such as 2%", "SHARE", lambda value: f"{100 * value:g}%"
)
SIZES = Form(
    parse_sizes, "a list of batch sizes, such as 1,64", "SIZES", lambda sizes: ",".join(map(str, sizes))
)


@dataclass(frozen=True)
class TimingOptions:
    """Duration and precision of a measurement. `launches` and one round per launch are always completed, even
    if they take longer than `seconds`.
    """

    seconds: float = option(
        10.0, "Maximum timed seconds for each model and batch size, without start and warm-up."
    )
    launches: int = option(10, "Minimum number of fresh processes for each model and batch size.", least=2)
    """The intervals are checked after every multiple of this number. Checking after every launch would end
    the measurement when they are narrow by chance.
    """
    ci: float = option(
        0.02,
        "Stop when the half-width of each 95 % interval is below this share of the median, such as 2%.",
        form=SHARE,
    )
    seed: int = option(0, "Seed of the order of the models.", least=0, most=MAX_SEED)
    block_s: float = 0.005
    """Duration of a block in seconds: at least one run. Short blocks let slow disturbances cancel between
    models.
    """
    lead_in_s: float = 0.01
    """Duration of the untimed runs before each block: at least one run. After 2 ms, runs of a small model
    still take 10 to 30 % longer than continuous ones.
    """
    warm_up_floor_s: float = 0.3
    """Shortest warm-up, in seconds."""
    warm_up_limit_s: float = 1.0
    """Longest warm-up, in seconds."""

    def __post_init__(self) -> None:
        check_declared(self)
        for name in ("seconds", "ci"):
            if getattr(self, name) <= 0:
                raise SlimdeployError(f"`{name}` must be above 0, not {getattr(self, name):g}")

    @property
    def launch_s(self) -> float:
        """Timed seconds of a model in a launch. `seconds` is enough for LOOKS times the minimum number of
        launches.
        """
        return self.seconds / (LOOKS * self.launches)


@dataclass(frozen=True)
class MeasureOptions(TimingOptions):
    """What to measure: section [bench] of a recipe."""

    batches: tuple[int, ...] = option((1, 64), "Batch sizes.", form=SIZES, flag="--batch")
    limit: int | None = option(None, "Accuracy on a class-balanced subset of N test images.", least=1)
    threads: int | None = option(None, "CPU threads.", least=1, most=MAX_THREADS, unset="all cores")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batches or not 1 <= min(self.batches) <= max(self.batches) <= MAX_BATCH:
            raise SlimdeployError(f"`batches` must be sizes from 1 to {MAX_BATCH}, not {self.batches}")


@dataclass(frozen=True)
class BenchOptions(MeasureOptions):
    """What to measure, and the runtime of the models."""

    backends: tuple[str, ...] = option(
        ("auto",),
        "Runtime: torch, onnxruntime or tensorrt. Repeatable, to compare runtimes.",
        flag="--backend",
    )
    device: str = option("auto", "Device to compute on.", choices=DEVICES)


@dataclass(frozen=True)
class EvaluateOptions:
    """Test images and runtime of an evaluation."""

    limit: int | None = option(None, "Use a class-balanced subset of N test images.", least=1)
    backend: str = option(
        "auto", "Runtime: torch, onnxruntime, tensorrt, or auto: chosen by the type of the file."
    )
    accuracy_only: bool = option(False, "For an engine: preprocess on the GPU and report only the accuracy.")
    device: str = option("auto", "Device to compute on.", choices=DEVICES)
    threads: int | None = option(None, "CPU threads.", least=1, most=MAX_THREADS, unset="all cores")

    def __post_init__(self) -> None:
        check_declared(self)
