"""Learning-rate schedules: pure functions of the progress through a run.

A new schedule is one more function in SCHEDULES.
"""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.2
"""Share of a one-cycle run with a rising learning rate (Smith & Topin, arXiv 1708.07120)."""


def one_cycle(progress: float, epoch: int, step_epochs: int) -> float:
    """Rises linearly over the first fifth, then falls linearly to zero."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return (1 - progress) / (1 - WARM_UP)


def cosine(progress: float, epoch: int, step_epochs: int) -> float:
    """Falls from 1 to 0 along half a cosine (Loshchilov & Hutter, arXiv 1608.03983, without restarts)."""
    return (1 + math.cos(math.pi * progress)) / 2


def step(progress: float, epoch: int, step_epochs: int) -> float:
    """Divided by 10 after every `step_epochs` epochs."""
    return 0.1 ** (epoch // step_epochs)


def constant(progress: float, epoch: int, step_epochs: int) -> float:
    """Always 1."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, int, int], float]] = {
    "one-cycle": one_cycle,
    "cosine": cosine,
    "step": step,
    "constant": constant,
}


def lr_factor(
    schedule: str, step_index: int, *, steps_per_epoch: int, epochs: int, step_epochs: int
) -> float:
    """Learning rate relative to the peak (0…1) at step `step_index`, counted over all epochs."""
    progress = (step_index + 1) / (steps_per_epoch * epochs + 1)
    return SCHEDULES[schedule](progress, step_index // steps_per_epoch, step_epochs)
