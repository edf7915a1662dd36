"""Conditions of a measurement: the machine, and its state before, during and after.

Everything is read from /proc and /sys below `root`, so that tests can use a tree of files. Missing facts are
listed by name.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.launch import cpu_count
from slimdeploy.toolchain.machine import sysfs
from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.machine.sysfs import ROOT, read_text
from slimdeploy.toolchain.models.model_info import versions

OTHERS = 0.1
"""Other programs that use this share of the processors while the models are timed make the machine busy."""
BUSY = 0.5
"""Where that isn't known, so does a load average above this share of the processors before the measurement.
The load average still counts what ended a minute ago, such as the training of the same network.
"""


def machine(root: Path = ROOT) -> dict[str, Any]:
    """Facts about the machine that don't change during a measurement."""
    return {
        "cpu": this_cpu(root).name,
        "device": read_text(root / "proc/device-tree/model"),
        "cores": cpu_count(),
        "memory_mb": memory // 1024 if (memory := sysfs.memory_kib(root).get("MemTotal")) else None,
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "l4t": sysfs.l4t_version(root),
        "versions": versions(),
    }


def state(root: Path = ROOT) -> dict[str, Any]:
    """The current state: load, governor, clocks, temperature, throttling, power mode. `missing` lists
    unavailable facts.
    """
    cpus = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))
    found = {
        "load_average": _load(root),
        "governor": _common(cpu / "cpufreq/scaling_governor" for cpu in cpus),
        "cpu_mhz": [int(khz) // 1000 for cpu in cpus if (khz := read_text(cpu / "cpufreq/scaling_cur_freq"))],
        "temperature_c": sysfs.temperatures(root),
        "throttled": _throttle_count(cpus),
        "gpu_mhz": _gpu_mhz(root),
        "power_mode": sysfs.power_mode(root),
    }
    missing = sorted(name for name, value in found.items() if value in (None, [], {}))
    return {name: value for name, value in found.items() if name not in missing} | {"missing": missing}


def during(others: Sequence[Sequence[float]]) -> dict[str, float]:
    """The state during the measurement, from the processor time of other programs, by model and launch."""
    told = [processors for launches in others for processors in launches]
    return {"other_work": round(sum(told) / len(told), 3)} if told else {}


def busy(result: dict[str, Any]) -> bool:
    """Whether other programs disturbed a `bench` result."""
    cores, told = result["machine"]["cores"], result["conditions"]
    return bool(_busy(told["before"], told.get("during") or {}, cores))


def remarks(
    before: dict[str, Any], after: dict[str, Any], *, cores: int, during: dict[str, float] | None = None
) -> list[str]:
    """Warnings about the conditions, one sentence each."""
    said = [f"the machine was busy{found}"] if (found := _busy(before, during or {}, cores)) else []
    if after.get("throttled", 0) > before.get("throttled", 0):
        said.append(f"the CPU throttled {after['throttled'] - before.get('throttled', 0)} times")
    if reasons := after.get("gpu", {}).get("slowed_by"):
        said.append(f"the GPU is slowed down: {', '.join(reasons)}")
    for name in ("governor", "power_mode"):
        if before.get(name) != after.get(name):
            said.append(f"{name.replace('_', ' ')} changed from {before.get(name)} to {after.get(name)}")
    return said


def _busy(before: dict[str, Any], during: dict[str, float], cores: int) -> str:
    """How other programs disturbed the measurement; empty if they did not."""
    processors = f"{cores} processor{'s' if cores > 1 else ''}"
    if "other_work" in during:
        used = during["other_work"]
        said = f": other programs used {used:.2f} of {processors} while the models were timed"
        return said if used > OTHERS * cores else ""
    load = before.get("load_average", [0])[0]
    return f" before: load average {load:.2f} on {processors}" if load > BUSY * cores else ""


def _load(root: Path) -> list[float] | None:
    text = read_text(root / "proc/loadavg")
    if text:
        return [float(value) for value in text.split()[:3]]
    return list(os.getloadavg()) if root == ROOT else None


def _common(paths: Any) -> str | None:
    """The common content of the files, or all contents if they differ."""
    return "/".join(sorted({text for path in paths if (text := read_text(path))})) or None


def _throttle_count(cpus: list[Path]) -> int | None:
    counts = [read_text(cpu / "thermal_throttle/core_throttle_count") for cpu in cpus]
    told = [int(count) for count in counts if count is not None]
    return sum(told) if told else None


def _gpu_mhz(root: Path) -> int | None:
    """The integrated GPU of a Jetson."""
    node = sysfs.gpu_node(root)
    hertz = read_text(node / "cur_freq") if node else None
    return int(hertz) // 1_000_000 if hertz else None
