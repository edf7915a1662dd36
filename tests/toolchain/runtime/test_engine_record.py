"""What the record reads off a machine."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.tests.toolchain.tensorrt_fake import FakeTensorrt
from slimdeploy.toolchain.runtime import engine_record
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice


def test_driver_version_is_read_from_the_kernel_module_s_line(tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12\n"
    )
    assert engine_record._driver_version(version) == "570.86.15"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    assert engine_record._driver_version(version) == "535.183.01"
    assert engine_record._driver_version(tmp_path / "none") is None


def test_l4t_version_is_read_from_the_release_line(tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    assert engine_record._l4t_version(release) == "36.4.3"
    assert engine_record._l4t_version(tmp_path / "none") is None


def test_compute_capability_comes_from_the_architecture() -> None:
    device = FakeDevice()
    for arch, capability in (("sm_87", "8.7"), ("sm_120", "12.0"), ("sm_75", "7.5")):
        device.arch = arch
        assert engine_record.this_machine(FakeTensorrt("10.3.0"), device).compute_capability == capability
