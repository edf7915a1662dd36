"""Facts about a device from /proc, /sys and /etc, as in tegrastats and nvpmodel.

Everything is read below `root`, so that tests can use a tree of files. A file that is missing or unreadable
(a sensor of a powered-down GPU returns an error) is skipped. Sources: NVIDIA, Jetson Linux Developer Guide
(r36, r38), "Platform Power and Performance"; Linux kernel documentation, hwmon/ina3221, hwmon/ina238,
sysfs-class-thermal, sysfs-class-devfreq.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path("/")
GPU_NAMES = ("gpu-gpc-0", "gpu", "ga10b", "gv11b", "gp10b")
"""Names or suffixes of the GPU's devfreq node: Thor, then Orin (JetPack 6, 5), Xavier, TX2."""

# First L4T release -> JetPack, from NVIDIA's archive of releases.
JETPACKS = {
    (32, 7): "4.6", (35, 1): "5.0", (35, 2): "5.1", (36, 2): "6.0 DP", (36, 3): "6.0", (36, 4): "6.1 or 6.2",
    (38, 1): "7.0", (38, 4): "7.1", (39, 2): "7.2",
}  # fmt: skip


@dataclass(frozen=True)
class Clock:
    """Current and maximum MHz."""

    name: str
    mhz: float
    max_mhz: float | None


@dataclass(frozen=True)
class DeviceFacts:
    """`power_w` by rail, `temperature_c` by zone; memory in MiB; `gpu_load` 0 to 1."""

    model: str | None
    l4t: str | None
    jetpack: str | None
    power_mode: str | None
    """Id and name, e.g. `2 MAXN_SUPER`; `power_modes` are all available ones."""
    memory_mb: float
    free_mb: float
    """Memory available to programs: free memory and caches that can be dropped."""
    swap_mb: float
    gpu_load: float | None
    temperature_c: dict[str, float] = field(default_factory=dict)
    power_w: dict[str, float] = field(default_factory=dict)
    clocks: tuple[Clock, ...] = ()
    power_modes: tuple[str, ...] = ()

    @property
    def is_jetson(self) -> bool:
        return self.l4t is not None or "Jetson" in (self.model or "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_facts(root: Path = ROOT) -> DeviceFacts:
    """The facts now."""
    memory = memory_kib(root)
    l4t = l4t_version(root)
    modes = power_modes(root)
    return DeviceFacts(
        model=read_text(root / "proc/device-tree/model"),
        l4t=l4t,
        jetpack=_jetpack(l4t),
        power_mode=power_mode(root),
        power_modes=tuple(f"{number} {name}" for number, name in modes.items()),
        memory_mb=memory.get("MemTotal", 0) / 1024,
        free_mb=memory.get("MemAvailable", 0) / 1024,
        swap_mb=memory.get("SwapTotal", 0) / 1024,
        gpu_load=_gpu_load(root),
        temperature_c=temperatures(root),
        power_w=_power(root),
        clocks=tuple(_clocks(root)),
    )


def read_text(path: Path) -> str | None:
    """The content of a small kernel file; None if it is missing or empty."""
    try:
        return path.read_text(errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None


def memory_kib(root: Path) -> dict[str, int]:
    """Field -> KiB."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return {name: int(value) for name, value in found}


def l4t_version(root: Path = ROOT) -> str | None:
    """L4T version: `36.4.3` from `# R36 (release), REVISION: 4.3, …`."""
    found = re.match(
        r"# R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or ""
    )
    return f"{found[1]}.{found[2]}" if found else None


def _jetpack(l4t: str | None) -> str | None:
    if l4t is None:
        return None
    numbers = tuple(int(n) for n in l4t.split("."))[:2]
    known = [release for release in JETPACKS if release[0] == numbers[0] and release <= numbers]
    return JETPACKS[max(known)] if known else None


def power_modes(root: Path) -> dict[str, str]:
    """Id -> name of each power mode in nvpmodel's configuration."""
    table = read_text(root / "etc/nvpmodel.conf") or ""
    return dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", table))


def power_mode(root: Path) -> str | None:
    """Id of the current power mode, from nvpmodel's status file."""
    status = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if not status:
        return None
    number, modes = str(int(status[1])), power_modes(root)
    return f"{number} {modes[number]}" if number in modes else number


def gpu_node(root: Path) -> Path | None:
    nodes = sorted((root / "sys/class/devfreq").glob("*"))
    for name in GPU_NAMES:
        for node in nodes:
            if node.name == name or node.name.endswith(f".{name}"):
                return node
    return None


def _gpu_load(root: Path) -> float | None:
    """The nvgpu driver reports thousandths. Thor's driver has no such file."""
    node = gpu_node(root)
    load = _number(node / "device/load") if node else None
    return load / 1000 if load is not None else None


def temperatures(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, millidegrees = read_text(zone / "type"), _number(zone / "temp")
        if (
            name and millidegrees is not None and millidegrees > -200_000
        ):  # lower values come from a sensor that is off
            found[name] = millidegrees / 1000
    return found


@dataclass(frozen=True)
class Rail:
    """A power sensor: a file of an INA238 in µW, or two of an INA3221 channel in mV and mA."""

    chip: str
    files: tuple[Path, ...]

    def watts(self) -> float:
        """Current power; raises OSError or ValueError if the sensor can't be read."""
        return math.prod(int(file.read_text()) for file in self.files) / 1e6


def rails(root: Path = ROOT) -> dict[str, Rail]:
    """Label -> rail, of all monitors, without unconnected channels and sums of channels."""
    found = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = read_text(monitor / "name")
        if chip == "ina238" and (monitor / "power1_input").is_file():
            found[read_text(monitor / "label") or "VIN"] = Rail(chip, (monitor / "power1_input",))
        if chip == "ina3221":
            for channel in (1, 2, 3):
                files = monitor / f"in{channel}_input", monitor / f"curr{channel}_input"
                label = read_text(monitor / f"in{channel}_label")
                if label and label != "NC" and all(file.is_file() for file in files):
                    found[label] = Rail(chip, files)
    return found


def _power(root: Path) -> dict[str, float]:
    """Rail -> W, for all rails that can be read."""
    found = {}
    for label, rail in rails(root).items():
        with contextlib.suppress(OSError, ValueError):
            found[label] = rail.watts()
    return found


def _clocks(root: Path) -> list[Clock]:
    found = []
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        now, most = _number(policy / "scaling_cur_freq"), _number(policy / "cpuinfo_max_freq")
        if now is not None:
            found.append(Clock(f"cpu {policy.name}", now / 1e3, most / 1e3 if most else None))
    if node := gpu_node(root):
        now, most = _number(node / "cur_freq"), _number(node / "max_freq")
        if now is not None:
            found.append(Clock("gpu", now / 1e6, most / 1e6 if most else None))
    return found
