"""What /proc/cpuinfo says of INT8."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimdeploy.toolchain.machine.cpu import this_cpu


@pytest.mark.parametrize(
    ("cpuinfo", "said", "overflows"),
    [
        ("model name\t: Xeon\nflags\t\t: avx2 avx512bw avx512_vnni\n", "Xeon, AVX-512 VNNI", False),
        ("model name\t: Core\nflags\t\t: avx2 avx_vnni\n", "Core, AVX VNNI", False),
        ("model name\t: EPYC\nflags\t\t: sse4_1 avx avx2\n", "EPYC, AVX2 without VNNI", True),
        ("model name\t: Xeon\nflags\t\t: avx2 avx512bw\n", "Xeon, AVX-512 without VNNI", True),
        ("Features\t: fp asimd asimddp\n", "Jetson, SDOT", False),
        ("Features\t: fp asimd\n", "Jetson, NEON without SDOT", False),
        ("", "Jetson, unknown instructions", False),
    ],
)
def test_instructions(tmp_path: Path, cpuinfo: str, said: str, overflows: bool) -> None:
    for name, text in {"proc/cpuinfo": cpuinfo, "proc/device-tree/model": "Jetson\0"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cpu = this_cpu(tmp_path)
    assert (str(cpu), cpu.overflows) == (said, overflows)


def test_a_machine_without_proc(tmp_path: Path) -> None:
    assert not this_cpu(tmp_path).overflows
