"""Electrical power while a model runs, if there is a sensor: J per image.

On a Jetson the INA3221 or INA238 monitor on the board, through hwmon; on other NVIDIA machines NVML. Without
a sensor no value is reported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from slimdeploy.toolchain.machine.sysfs import ROOT, Rail, rails
from slimdeploy.toolchain.measure.nvml import Nvml
from slimdeploy.toolchain.measure.process import Worker
from slimdeploy.toolchain.measure.worker import HOST

SAMPLE_S = 0.02
IDLE_S = 1.0

T = TypeVar("T")

# The rail of the whole module: on Orin Nano and NX and Xavier NX; on Nano, TX1 and TX2.
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
# AGX Orin and Thor have none. VIN_SYS_5V0 is only the 5 V input (I/O and memory), beside the rails of GPU,
# CPU and SoC, which are fed from the high-voltage input: the module's power is their sum. Everything
# connected to the 5 V input is included in it. (Jetson Linux Developer Guide, AGX Orin, power monitors; Linux
# tegra234-p3701.dtsi; rbonghi/jetson_stats, issue 344 and total_power.)
BEHIND_ANOTHER_RAIL = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}


class SensorError(Exception):
    """The sensor failed while it was read."""


class Sensor(Protocol):
    @property
    def name(self) -> str: ...

    def watts(self) -> float:
        """Power now."""
        ...


@dataclass(frozen=True)
class Monitor:
    """Rails of the monitors on a Jetson's board. An INA238 at the power input measures the whole board, as on
    Thor's developer kit (NVIDIA's forum, topic 366461).
    """

    name: str
    rails: tuple[Rail, ...]

    def watts(self) -> float:
        return sum(rail.watts() for rail in self.rails)


def find_sensor(root: Path = ROOT, nvml: Nvml | None = None) -> Sensor | None:
    """The sensor of this machine: INA238 or INA3221 below `root`, else NVML; None if there is neither."""
    found = rails(root)
    for label, rail in found.items():
        if rail.chip == "ina238":
            return Monitor(f"INA238 {label}", (rail,))
    if not found:
        return nvml if nvml is not None and nvml.has_power() else None
    total = [name for name in TOTAL_RAILS if name in found][:1]
    chosen = total or [name for name in found if BEHIND_ANOTHER_RAIL.get(name) not in found]
    return Monitor(f"INA3221 {'+'.join(chosen)}", tuple(found[name] for name in chosen))


@dataclass
class Meter:
    """Samples `sensor` while a model runs. Raises SensorError if it can't be read."""

    sensor: Sensor
    idle_watts: float = 0.0

    def measure_idle(self) -> None:
        """Measure the power of the machine at rest."""
        _, self.idle_watts = self._watts_during(lambda: time.sleep(IDLE_S))

    def figures(self, worker: Worker, *, batch: int, seconds: float) -> dict[str, object]:
        """Let `worker` run without pause for `seconds`, after as long a time that isn't counted: sensors
        average over up to a second.

        Returns mean W, W at rest, and J per image (including the machine's rest power).
        """
        worker.call("block", seconds)
        block, watts = self._watts_during(lambda: worker.call("block", seconds))
        return {
            "sensor": self.sensor.name,
            "watts": watts,
            "idle_watts": self.idle_watts,
            "joules_per_image": watts * float(block[HOST].mean()) / 1000 / batch,
        }

    def _watts_during(self, work: Callable[[], T]) -> tuple[T, float]:
        """The result of `work`, and the mean W meanwhile."""
        done = threading.Event()

        def sample() -> list[float]:
            taken = [self.sensor.watts()]
            while not done.wait(SAMPLE_S):
                taken.append(self.sensor.watts())
            return taken

        with ThreadPoolExecutor(1) as pool:
            sampling = pool.submit(sample)
            try:
                result = work()
            finally:
                done.set()
            try:
                return result, float(np.mean(sampling.result()))
            except Exception as error:  # OSError of a file in sysfs, or NVML's own
                raise SensorError(f"{self.sensor.name} can't be read: {error}") from error
