"""Time the quantised file and the float file on this CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session
from slimdeploy.toolchain.runtime.single_image import time_single_images

ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """Milliseconds for a single image, and the CPU that they were measured on."""

    float32: float
    quantised: float
    cpu: str

    @property
    def slower(self) -> bool:
        return self.quantised > self.float32

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "slower": self.slower}


def compare_speed(model: Path, quantised: Path, *, threads: int | None, seconds: float) -> Speed:
    """Time both files alternately, one session at a time (idle threads of two sessions disturb each other);
    the best median counts. This is a quick estimate: `slimdeploy bench` measures with intervals.
    """
    options = SessionOptions(device="cpu", threads=threads)
    best = dict.fromkeys((model, quantised), math.inf)
    for _ in range(ROUNDS):
        for path in best:
            with open_session(path, options=options) as session:
                best[path] = min(best[path], time_single_images(session, seconds / ROUNDS).p50)
    return Speed(best[model], best[quantised], str(this_cpu()))
