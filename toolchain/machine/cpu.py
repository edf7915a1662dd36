"""The CPU and its INT8 instructions, which decide how fast and whether exactly an INT8 file runs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.toolchain.machine.sysfs import ROOT, read_text

# Flag in /proc/cpuinfo -> INT8 instructions, the fastest first.
_X86 = (("avx512_vnni", "AVX-512 VNNI"), ("avx_vnni", "AVX VNNI"))
_X86_WITHOUT = (("avx512bw", "AVX-512 without VNNI"), ("avx2", "AVX2 without VNNI"))
_ARM = (("i8mm", "I8MM"), ("asimddp", "SDOT"), ("asimd", "NEON without SDOT"))


@dataclass(frozen=True)
class Cpu:
    """`instructions` are the INT8 instructions."""

    name: str
    instructions: str
    overflows: bool
    """Whether it adds two neighbouring products (u8 × s8) in 16 bits, so that weights beyond ±64 can
    overflow.
    """

    def __str__(self) -> str:
        return f"{self.name}, {self.instructions}"


def this_cpu(root: Path = ROOT) -> Cpu:
    """The CPU according to /proc/cpuinfo below `root`."""
    lines = (read_text(root / "proc/cpuinfo") or "").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or read_text(root / "proc/device-tree/model") or platform.machine()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    for known, overflows in ((_X86, False), (_X86_WITHOUT, True), (_ARM, False)):
        for flag, instructions in known:
            if flag in flags:
                return Cpu(name, instructions, overflows)
    return Cpu(name, "unknown instructions", False)
