"""Which of the processes that torchrun started this is, and how many processors it may use. No torch here.

All of them run the same command. What it prints is printed once: results and logs by the first process, an
error by whichever meets it first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError

DISTRIBUTED_COMMANDS = ("train", "finetune")


@dataclass(frozen=True)
class Launch:
    """This process's number among all of the run (`rank`) and among those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0


def launch() -> Launch:
    """What torchrun's environment variables say; one process where there are none."""
    variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "MASTER_ADDR" not in os.environ or not all(name in os.environ for name in variables):
        return Launch()
    return Launch(*(int(os.environ[name]) for name in variables))


def cpu_count() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_command(name: str) -> None:
    """Refuse to start `name` many times over, where that would only do the same work again."""
    if launch().size > 1 and name not in DISTRIBUTED_COMMANDS:
        raise SlimdeployError(
            f"torchrun starts {' and '.join(DISTRIBUTED_COMMANDS)} only: run slimdeploy {name} without it"
        )


_claim: Callable[[], bool] | None = None


def agree_by(claim: Callable[[], bool] | None) -> None:
    """Let `claim`, true in one process of all, decide from now on who reports an error; None ends that."""
    global _claim
    _claim = claim


def reports_errors() -> bool:
    """Whether this process prints the error that it is about to end with."""
    # Before the processes have met, an error is one that all of them make: a wrong option, no GPU.
    return launch().main if _claim is None else _claim()
