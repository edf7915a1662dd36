"""Electrical power while a model runs, where there is a sensor: J per image.

On a Jetson the INA3221 or INA238 monitor on the board, through hwmon; on other NVIDIA machines NVML. No
sensor, no figure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from slimdeploy.toolchain.measure.nvml import Nvml
from slimdeploy.toolchain.measure.process import Worker
from slimdeploy.toolchain.measure.timing import Block
from slimdeploy.toolchain.measure.worker import HOST

SAMPLE_S = 0.02
IDLE_S = 1.0

# The rail that feeds the whole module: on Orin Nano and NX and Xavier NX; on Nano, TX1 and TX2.
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
# AGX Orin and Thor have none. VIN_SYS_5V0 is the 5 V input alone (I/O and memory) and stands beside the rails
# of GPU, CPU and SoC, which come from the high-voltage input: the module takes their sum. What hangs on the
# 5 V input is in its figure already. (Jetson Linux Developer Guide, AGX Orin, power monitors; Linux
# tegra234-p3701.dtsi; rbonghi/jetson_stats, issue 344 and total_power.)
BEHIND_ANOTHER_RAIL = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}


class Sensor(Protocol):
    @property
    def name(self) -> str: ...

    def watts(self) -> float:
        """Power now."""
        ...


@dataclass(frozen=True)
class Ina3221:
    """Rails of an INA3221: pairs of the files that hold mV and mA."""

    name: str
    rails: tuple[tuple[Path, Path], ...]

    def watts(self) -> float:
        return sum(int(volts.read_text()) * int(amps.read_text()) for volts, amps in self.rails) / 1e6


@dataclass(frozen=True)
class Ina238:
    """An INA238 at the power input: what the whole board takes, as on Thor's developer kit (NVIDIA's forum,
    topic 366461). Its file holds µW.
    """

    name: str
    file: Path

    def watts(self) -> float:
        return int(self.file.read_text()) / 1e6


def find_sensor(root: Path = Path("/"), nvml: Nvml | None = None) -> Sensor | None:
    """The sensor of this machine: INA238 or INA3221 below `root`, else NVML; None where there is neither."""
    rails: dict[str, tuple[Path, Path]] = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = _text(monitor / "name")
        if chip == "ina238" and (monitor / "power1_input").is_file():
            return Ina238(f"INA238 {_text(monitor / 'label') or 'VIN'}", monitor / "power1_input")
        if chip == "ina3221":
            rails |= _rails(monitor)
    if not rails:
        return nvml if nvml is not None and nvml.has_power() else None
    total = [name for name in TOTAL_RAILS if name in rails][:1]
    chosen = total or [name for name in rails if BEHIND_ANOTHER_RAIL.get(name) not in rails]
    return Ina3221(f"INA3221 {'+'.join(chosen)}", tuple(rails[name] for name in chosen))


def _rails(monitor: Path) -> dict[str, tuple[Path, Path]]:
    """Label -> the files with mV and mA of the channels in use; a sum over channels has no current."""
    found = {}
    for channel in (1, 2, 3):
        volts, amps = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
        label = _text(monitor / f"in{channel}_label")
        if label and label != "NC" and volts.is_file() and amps.is_file():
            found[label] = volts, amps
    return found


@dataclass
class Meter:
    """Samples `sensor` while blocks run; kept by worker label."""

    sensor: Sensor
    idle_watts: float = 0.0
    _watts: dict[str, list[float]] = field(default_factory=dict)
    _joules: dict[str, float] = field(default_factory=dict)
    _runs: dict[str, int] = field(default_factory=dict)

    def measure_idle(self) -> None:
        """Take the power of the machine at rest."""
        done = threading.Event()
        threading.Timer(IDLE_S, done.set).start()
        self.idle_watts = float(np.mean(self._sample_until(done)))

    def around(self, worker: Worker, block: Callable[[], Block]) -> Block:
        """Run a timed block of `worker` and take the power meanwhile."""
        done, taken = threading.Event(), []
        thread = threading.Thread(target=lambda: taken.extend(self._sample_until(done)))
        thread.start()
        try:
            result = block()
        finally:
            done.set()
            thread.join()
        label, watts = worker.label, float(np.mean(taken))
        self._watts.setdefault(label, []).append(watts)
        self._joules[label] = self._joules.get(label, 0.0) + watts * float(result[HOST].sum()) / 1000
        self._runs[label] = self._runs.get(label, 0) + len(result[HOST])
        return result

    def figures(self, label: str, *, batch: int) -> dict[str, object]:
        """Mean W over the blocks, W at rest, and J per image (the machine's rest included)."""
        return {
            "sensor": self.sensor.name,
            "watts": float(np.mean(self._watts[label])),
            "idle_watts": self.idle_watts,
            "joules_per_image": self._joules[label] / (self._runs[label] * batch),
        }

    def _sample_until(self, done: threading.Event) -> list[float]:
        taken = [self.sensor.watts()]
        while not done.wait(SAMPLE_S):
            taken.append(self.sensor.watts())
        return taken


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
