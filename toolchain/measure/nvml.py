"""Facts about a discrete GPU from NVML, NVIDIA's management library. On a Jetson it reports nothing
useful.
"""

from __future__ import annotations

from typing import Any

MB = 2**20

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

    def __init__(self, pynvml: Any, index: int = 0) -> None:
        self._nvml = pynvml
        pynvml.nvmlInit()
        self._device = pynvml.nvmlDeviceGetHandleByIndex(index)
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
    """The first NVIDIA GPU; None without pynvml, driver or GPU."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        return Nvml(pynvml)
    except pynvml.NVMLError:
        return None
