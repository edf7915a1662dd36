"""NVIDIA's driver."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.toolchain.machine.cuda import driver_version


def test_driver_version_is_read_from_the_kernel_module_s_line(tmp_path: Path) -> None:
    assert driver_version(tmp_path) is None
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12\n"
    )
    assert driver_version(tmp_path) == "570.86.15"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    assert driver_version(tmp_path) == "535.183.01"
