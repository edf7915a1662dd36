"""Electrical power while a model runs, where there is a sensor: J per image.

On a Jetson the INA3221 monitor on the board, through hwmon; on other NVIDIA machines NVML. No sensor, no
figure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from slimdeploy.benchmarks.latency import Block
from slimdeploy.benchmarks.nvml import Nvml
from slimdeploy.benchmarks.process import Worker
from slimdeploy.benchmarks.worker import HOST

SAMPLE_S = 0.02
IDLE_S = 1.0

# The rail that feeds the whole module, by its name on each board (NVIDIA, "Jetson Developer Guide: Power").
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")


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


def find_sensor(root: Path = Path("/"), nvml: Nvml | None = None) -> Sensor | None:
    """The sensor of this machine: INA3221 below `root`, else NVML; None where there is neither."""
    rails: dict[str, tuple[Path, Path]] = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(monitor / "name") != "ina3221":
            continue
        for volts in sorted(monitor.glob("in[0-9]*_input")):
            channel = volts.name.removeprefix("in").removesuffix("_input")
            amps, label = monitor / f"curr{channel}_input", _text(monitor / f"in{channel}_label")
            if amps.is_file() and label and label != "NC":
                rails[label] = volts, amps
    total = [name for name in TOTAL_RAILS if name in rails]
    if total:
        return Ina3221(f"INA3221 {total[0]}", (rails[total[0]],))
    if rails:
        return Ina3221(f"INA3221 {'+'.join(rails)}", tuple(rails.values()))
    return nvml if nvml is not None and nvml.has_power() else None


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
