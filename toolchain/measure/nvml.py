"""Facts about a discrete GPU from NVML, NVIDIA's management library. On a Jetson it reports nothing
useful.
"""

from __future__ import annotations

import os
from typing import Any

from slimdeploy.toolchain.measure.process_memory import MB

# NVML's bits for clocks reduced by heat or power (nvml.h, nvmlClocksThrottleReasons).
SLOWED_BY = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat",
    0x40: "hardware heat",
    0x80: "power brake",
}


class Nvml:
    """One GPU through `pynvml` (package nvidia-ml-py), or a compatible module."""

    def __init__(self, pynvml: Any, device: str = "0") -> None:
        """`device`: an index or a UUID, as in CUDA_VISIBLE_DEVICES."""
        self._nvml = pynvml
        pynvml.nvmlInit()
        if device.isdecimal():
            self._device = pynvml.nvmlDeviceGetHandleByIndex(int(device))
        else:
            self._device = pynvml.nvmlDeviceGetHandleByUUID(device)
        self.name = f"NVML {self._ask('nvmlDeviceGetName')}"

    def has_power(self) -> bool:
        return self._ask("nvmlDeviceGetPowerUsage") is not None

    def watts(self) -> float:
        return self._nvml.nvmlDeviceGetPowerUsage(self._device) / 1000

    def used_mb(self, pid: int) -> float | None:
        """Device memory of process `pid`; None if NVML doesn't report it."""
        for process in self._ask("nvmlDeviceGetComputeRunningProcesses") or []:
            if process.pid == pid and process.usedGpuMemory is not None:
                return process.usedGpuMemory / MB
        return None

    def machine(self) -> dict[str, Any]:
        """Name and driver of the GPU."""
        driver = self._nvml.nvmlSystemGetDriverVersion()
        return {"name": self.name.removeprefix("NVML "), "driver": driver}

    def state(self) -> dict[str, Any]:
        """Clocks, temperature and current throttling reasons, as far as available."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        told = {
            "sm_mhz": self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
            "slowed_by": None
            if reasons is None
            else [why for bit, why in SLOWED_BY.items() if reasons & bit],
        }
        return {name: value for name, value in told.items() if value is not None}

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The result, or None if this GPU or driver doesn't support the query."""
        try:
            return getattr(self._nvml, function)(self._device, *arguments)
        except self._nvml.NVMLError:
            return None


def find_nvml() -> Nvml | None:
    """The first GPU that CUDA uses: NVML itself ignores CUDA_VISIBLE_DEVICES. None without pynvml, driver or
    GPU. With GPUs of several kinds, indices are those of CUDA only if CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        return Nvml(pynvml, first)
    except pynvml.NVMLError:
        return None
