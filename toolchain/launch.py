"""The rank of this process in a run started by torchrun, and its number of processors. No torch here.

All processes run the same command, but its output is printed once: results and logs by the first process, an
error by the process that meets it first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from slimdeploy.toolchain.errors import SlimdeployError

DISTRIBUTED_COMMANDS = ("train", "finetune")


@dataclass(frozen=True)
class Launch:
    """The rank of this process in the whole run (`rank`) and on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


def launch() -> Launch:
    """The values of torchrun's environment variables; one process if there are none."""
    variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "MASTER_ADDR" not in os.environ or not all(name in os.environ for name in variables):
        return Launch()
    return Launch(*(int(os.environ[name]) for name in variables))


def cpu_count() -> int:
    """Number of processors available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_command(name: str) -> None:
    """Refuse to run `name` in several processes if each would only repeat the work."""
    if launch().size > 1 and name not in DISTRIBUTED_COMMANDS:
        raise SlimdeployError(
            f"torchrun starts {' and '.join(DISTRIBUTED_COMMANDS)} only: run slimdeploy {name} without it"
        )


_claim: Callable[[], bool] | None = None


def agree_by(claim: Callable[[], bool] | None) -> None:
    """Use `claim`, which returns true in only one process, to decide which process reports an error; None
    resets this.
    """
    global _claim
    _claim = claim


def reports_errors() -> bool:
    """Whether this process prints the error with which it ends."""
    # Before the processes are connected, all of them raise the same error: a wrong option, no GPU.
    return launch().main if _claim is None else _claim()
