"""Facts read from trees of /proc and /sys. The trees were written from public descriptions; each says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimdeploy.toolchain.machine.sysfs import Clock, read_facts

TREES = Path(__file__).parents[1] / "deploy" / "jetson_trees"


@pytest.fixture
def grow(tmp_path):
    """`grow(name)` → a root folder with the files of that tree."""

    def write(name: str) -> Path:
        document = json.loads((TREES / f"{name}.json").read_text())
        assert document["label"].startswith("Written from public descriptions, not recorded on a device")
        for path, content in document["files"].items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        return tmp_path

    return write


def test_orin_nano(grow):
    facts = read_facts(grow("orin-nano"))
    assert facts.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (facts.l4t, facts.jetpack, facts.is_jetson) == ("36.4.3", "6.1 or 6.2", True)
    assert facts.power_mode == "0 15W"
    assert facts.power_modes[2] == "2 MAXN_SUPER"
    assert facts.power_w == pytest.approx({"VDD_IN": 6.2, "VDD_CPU_GPU_CV": 1.59744, "VDD_SOC": 2.39616})
    assert facts.temperature_c == {
        "cpu-thermal": 48.218, "gpu-thermal": 47.093, "soc0-thermal": 46.5, "tj-thermal": 48.218,
    }  # fmt: skip
    assert facts.gpu_load == 0.412
    assert facts.clocks == (
        Clock("cpu policy0", 729.6, 1728.0), Clock("cpu policy4", 729.6, 1728.0), Clock("gpu", 306.0, 1020.0),
    )  # fmt: skip
    assert (round(facts.memory_mb), round(facts.free_mb), round(facts.swap_mb)) == (7619, 5501, 3810)


def test_agx_orin(grow):
    facts = read_facts(grow("agx-orin"))
    assert (facts.l4t, facts.jetpack, facts.power_mode) == ("35.4.1", "5.1", "0 MAXN")
    assert set(facts.power_w) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    assert facts.power_w["VDD_GPU_SOC"] == pytest.approx(3.168)
    assert "AUX-therm" not in facts.temperature_c  # −256 °C: the sensor is off
    assert facts.gpu_load == 0.0
    assert facts.clocks[-1] == Clock("gpu", 1300.5, 1300.5)


def test_thor(grow):
    facts = read_facts(grow("thor"))
    assert (facts.l4t, facts.jetpack, facts.power_mode) == ("38.2.0", "7.0", "1 120W")
    assert facts.power_w == pytest.approx(
        {"VDD_GPU": 0.0, "VDD_CPU_SOC_MSS": 6.5072, "VIN_SYS_5V0": 6.52, "VIN": 23.04}
    )
    assert facts.gpu_load is None
    assert "gpu-thermal" not in facts.temperature_c
    assert facts.clocks[-1] == Clock("gpu", 318.0, 1575.0)
    assert facts.swap_mb == 0


def test_sensor_that_answers_with_an_error(grow):
    root = grow("orin-nano")
    for path in ("sys/class/hwmon/hwmon1/curr2_input", "sys/class/devfreq/17000000.gpu/device/load"):
        (root / path).write_text("")
    (root / "sys/class/thermal/thermal_zone0/temp").unlink()
    (root / "sys/class/thermal/thermal_zone0/temp").mkdir()  # reading it is an OSError
    facts = read_facts(root)
    assert "VDD_CPU_GPU_CV" not in facts.power_w
    assert facts.gpu_load is None
    assert "cpu-thermal" not in facts.temperature_c


def test_nothing_at_all(tmp_path):
    facts = read_facts(tmp_path)
    assert (facts.model, facts.l4t, facts.power_mode, facts.is_jetson) == (None, None, None, False)
    assert (facts.power_w, facts.temperature_c, facts.clocks) == ({}, {}, ())


@pytest.mark.parametrize(
    ("release", "jetpack"), [("39 (release), REVISION: 2.0", "7.2"), ("99 (release), REVISION: 1.0", None)]
)
def test_jetpack_by_release(tmp_path, release, jetpack):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(f"# R{release}, GCID: 1")
    assert read_facts(tmp_path).jetpack == jetpack


def test_this_machine():
    assert read_facts().memory_mb > read_facts().free_mb > 0
