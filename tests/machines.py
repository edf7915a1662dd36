"""The whole suite as on CPUs of other kinds, on more threads, and with other random examples.

    python tests/machines.py [pytest arguments]

A test that tests the rounding of one CPU fails here. Each row of MACHINES takes as long as the suite.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Stands for a CPU: threads, instructions that torch and oneDNN may use. `seed` is hypothesis'."""

    threads: int
    torch: str
    onednn: str
    seed: int

    def environment(self) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": str(self.threads),
            # More threads than cores are waiting: those that spin take the others' time.
            "OMP_WAIT_POLICY": "PASSIVE",
            "FUZZ_EXAMPLES": "1000",
            "ATEN_CPU_CAPABILITY": self.torch,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
        }


MACHINES = [
    Machine(1, "avx2", "AVX2", 1),
    Machine(2, "avx2", "AVX2", 2),
    Machine(1, "default", "SSE41", 3),
    Machine(2, "default", "AVX2", 4),
]


def main() -> None:
    failed = [machine for machine in MACHINES if not _passes(machine, sys.argv[1:])]
    for machine in failed:
        print(f"failed: {machine}")
    sys.exit(bool(failed))


def _passes(machine: Machine, arguments: list[str]) -> bool:
    print(f"== {machine}", flush=True)
    tests = [sys.executable, "-m", "pytest", "-q", f"--hypothesis-seed={machine.seed}", *arguments]
    return subprocess.run(tests, env={**os.environ, **machine.environment()}, check=False).returncode == 0


if __name__ == "__main__":
    main()
