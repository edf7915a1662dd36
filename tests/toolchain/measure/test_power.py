from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_sessions
import numpy as np
import pytest

from slimdeploy.toolchain.measure.bench import Surroundings, measure
from slimdeploy.toolchain.measure.nvml import Nvml, find_nvml
from slimdeploy.toolchain.measure.options import MeasureOptions
from slimdeploy.toolchain.measure.power import Meter, find_sensor


class NVMLError(Exception):
    pass


class FakeNvml:
    """Looks like pynvml for one GPU at 70 W; `lacks` names what it doesn't support."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVMLError = NVMLError

    def __init__(self, *lacks: str) -> None:
        self._lacks = lacks

    def __getattribute__(self, name):
        if not name.startswith("_") and name in self._lacks:

            def unsupported(*arguments):
                raise NVMLError(name)

            return unsupported
        return super().__getattribute__(name)

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByIndex(self, index):
        return f"gpu{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != "GPU-1234":
            raise NVMLError(uuid)
        return uuid

    def nvmlDeviceGetName(self, device):
        return {"gpu0": "Fake GPU"}.get(device, f"Fake {device}")

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetPowerUsage(self, device):
        return 70_000

    def nvmlDeviceGetClockInfo(self, device, clock):
        return {1: 1500, 2: 9000}[clock]

    def nvmlDeviceGetTemperature(self, device, sensor):
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device):
        return 0x04 | 0x20

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        return [SimpleNamespace(pid=7, usedGpuMemory=300 << 20), SimpleNamespace(pid=8, usedGpuMemory=None)]


def hwmon(root, rails):
    monitor = root / "sys/class/hwmon/hwmon3"
    monitor.mkdir(parents=True)
    (monitor / "name").write_text("ina3221\n")
    for channel, (label, millivolts, milliamps) in enumerate(rails, start=1):
        (monitor / f"in{channel}_label").write_text(f"{label}\n")
        (monitor / f"in{channel}_input").write_text(f"{millivolts}\n")
        (monitor / f"curr{channel}_input").write_text(f"{milliamps}\n")


def board(root, name):
    """The files that Linux has on a Jetson (tests/toolchain/deploy/jetson_trees)."""
    tree = Path(__file__).parents[1] / "deploy/jetson_trees" / f"{name}.json"
    for path, content in json.loads(tree.read_text())["files"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def test_the_rail_that_feeds_the_module_is_taken_alone(tmp_path):
    hwmon(tmp_path, [("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300)])
    sensor = find_sensor(tmp_path)
    assert sensor.name == "INA3221 VDD_IN"
    assert sensor.watts() == pytest.approx(6.0)


def test_without_such_a_rail_all_are_added(tmp_path):
    hwmon(tmp_path, [("GPU", 19000, 100), ("CPU", 19000, 200), ("NC", 0, 0)])
    sensor = find_sensor(tmp_path)
    assert sensor.name == "INA3221 GPU+CPU"
    assert sensor.watts() == pytest.approx(5.7)


def test_agx_orin_adds_the_rails_that_feed_it(tmp_path):
    """19.8 V × (160 + 40) mA + 5.016 V × 700 mA: the memory's rail is behind the 5 V."""
    sensor = find_sensor(board(tmp_path, "agx-orin"))
    assert sensor.name == "INA3221 VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0"
    assert sensor.watts() == pytest.approx(19.8 * 0.2 + 5.016 * 0.7)


def test_thor_takes_the_monitor_at_its_input(tmp_path):
    tree = board(tmp_path, "thor")
    sensor = find_sensor(tree)
    assert (sensor.name, sensor.watts()) == ("INA238 VIN", 23.04)
    (tree / "sys/class/hwmon/hwmon3/power1_input").unlink()  # a carrier board without one
    without = find_sensor(tree)
    assert without.name == "INA3221 VDD_GPU+VDD_CPU_SOC_MSS+VIN_SYS_5V0"
    assert without.watts() == pytest.approx(19.6 * 0.332 + 5 * 1.304)


def test_orin_nano_has_a_rail_for_all(tmp_path):
    sensor = find_sensor(board(tmp_path, "orin-nano"))
    assert (sensor.name, sensor.watts()) == ("INA3221 VDD_IN", pytest.approx(6.2))


def test_a_machine_without_sensor_has_none(tmp_path):
    assert find_sensor(tmp_path) is None
    assert find_sensor(tmp_path, Nvml(FakeNvml("nvmlDeviceGetPowerUsage"))) is None


def test_nvml_is_asked_where_there_is_no_ina3221(tmp_path):
    sensor = find_sensor(tmp_path, Nvml(FakeNvml()))
    assert (sensor.name, sensor.watts()) == ("NVML Fake GPU", 70.0)


def test_nvml_tells_its_state_and_leaves_out_what_it_cannot():
    gpu = Nvml(FakeNvml())
    assert gpu.machine() == {"name": "Fake GPU", "driver": "580.1"}
    assert gpu.state() == {
        "sm_mhz": 1500, "memory_mhz": 9000, "temperature_c": 61, "slowed_by": ["power cap", "heat"]
    }  # fmt: skip
    lacking = Nvml(FakeNvml("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons"))
    assert lacking.state() == {"sm_mhz": 1500, "memory_mhz": 9000}


@pytest.mark.parametrize(
    ("visible", "name"),
    [(None, "Fake GPU"), ("1,0", "Fake gpu1"), ("GPU-1234", "Fake GPU-1234"), ("", None), ("MIG-1", None)],
)
def test_nvml_describes_the_gpu_that_cuda_uses(monkeypatch, visible, name):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_nvml()
    assert (found.machine()["name"] if found else None) == name


def test_device_memory_is_that_of_the_process():
    gpu = Nvml(FakeNvml())
    assert gpu.used_mb(7) == 300
    assert gpu.used_mb(8) is None
    assert gpu.used_mb(9) is None


class Constant:
    name = "a lamp"

    def watts(self) -> float:
        return 60.0


class Failing(Constant):
    """The third reading fails."""

    readings = 0

    def watts(self) -> float:
        self.readings += 1
        if self.readings == 3:
            raise OSError("Input/output error")
        return 60.0


def test_a_sensor_that_fails_gives_no_power(capfd):
    options = MeasureOptions(batches=(2,), seconds=0.1, ci=0.9, launches=2, warm_up_floor_s=0.03)
    said = []
    around = Surroundings(sensor=Failing(), progress=said.append)
    result = measure([fake_sessions.fake("m", sleeps_ms=(5,))], options, around)
    assert result["rows"][0]["power"] is None
    assert "power" in result["conditions"]["missing"]
    assert any("no power: a lamp can't be read: Input/output error" in line for line in said)
    assert "Traceback" not in capfd.readouterr().err


class Running:
    """A worker whose runs of 4 images take 100 and 300 ms. It counts what it was told to run."""

    def __init__(self):
        self.calls = []

    def call(self, command, seconds):
        self.calls.append((command, seconds))
        return {"host_ms": np.array([100.0, 300.0])}


def test_energy_is_power_times_time_of_a_continuous_run():
    worker = Running()
    figures = Meter(Constant()).figures(worker, batch=4, seconds=1.5)
    assert figures["watts"] == 60.0
    assert figures["joules_per_image"] == pytest.approx(60 * 0.2 / 4)
    assert figures["sensor"] == "a lamp"
    assert worker.calls == [("block", 1.5)] * 2, "the sensor's average is of the second run alone"


def test_a_run_with_a_sensor_says_joules_per_image():
    options = MeasureOptions(batches=(2,), seconds=0.1, ci=0.9, launches=2, warm_up_floor_s=0.03)
    result = measure([fake_sessions.fake("m", sleeps_ms=(5,))], options, Surroundings(sensor=Constant()))
    (row,) = result["rows"]
    assert row["power"]["joules_per_image"] >= 60 * 0.005 / 2
    assert row["power"]["idle_watts"] == row["power"]["watts"] == 60.0
    assert "power" not in result["conditions"]["missing"]
