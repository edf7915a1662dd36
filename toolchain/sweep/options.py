"""How a sweep is carried out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from slimdeploy.toolchain.errors import SlimdeployError, unknown

SAMPLERS = ("tpe", "nsga2")


@dataclass(frozen=True)
class SweepOptions:
    """`storage` is a database's URL. `trials` None runs the whole grid."""

    storage: str
    study: str
    trials: int | None = None
    sampler: str = "tpe"
    heartbeat: int = 30
    """Seconds between two signs of life of a worker."""
    device: str = "cpu"
    threads: int | None = None
    started: float = field(default_factory=time.time)
    """Trials that failed by an error of their own before are tried again, those that fail later aren't."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise unknown("sampler", self.sampler, SAMPLERS)
        if self.trials is not None and self.trials < 1:
            raise SlimdeployError(f"trials must be at least 1, not {self.trials}")
        if self.heartbeat < 1:
            raise SlimdeployError(f"heartbeat must be at least 1 s, not {self.heartbeat}")

    @property
    def method(self) -> str:
        """`grid`, or the sampler's name."""
        return "grid" if self.trials is None else self.sampler
