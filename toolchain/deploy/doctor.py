"""Check what this machine supports, and name the command that fixes each problem.

A check is a function in CHECKS. It reads the machine only through `Machine`, so that tests can replace it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from slimdeploy.toolchain.deploy.doctor_runtimes import bindings, compiler, libraries, providers, runtimes
from slimdeploy.toolchain.deploy.findings import MISSING, NOTE, OK, WARNING, Finding
from slimdeploy.toolchain.deploy.machine import Machine

ADD_SWAP = " && sudo ".join(
    ("sudo fallocate -l 4G /swapfile", "chmod 600 /swapfile", "mkswap /swapfile", "swapon /swapfile")
)
LOW_MEMORY_MB, LOW_DISK_MB, NO_DISK_MB = 1024, 2048, 128


def examine(machine: Machine) -> list[Finding]:
    """All findings, in the order of the checks."""
    return [finding for each in CHECKS for finding in each(machine)]


def works(findings: list[Finding]) -> bool:
    """Whether the machine can do its main task."""
    return all(finding.status != MISSING for finding in findings)


def report(machine: Machine, findings: list[Finding]) -> dict[str, Any]:
    return {
        "role": machine.role,
        "ok": works(findings),
        "findings": [asdict(finding) for finding in findings],
        "device": machine.facts.to_json(),
    }


def system(machine: Machine) -> Iterator[Finding]:
    facts = machine.facts
    python = f"Python {platform.python_version()} on {platform.machine()}"
    yield Finding("system", OK, f"{facts.model}, {python}" if facts.model else python)
    if not facts.is_jetson:
        return
    if facts.l4t is None:
        mount = "/etc/nv_tegra_release:/etc/nv_tegra_release"
        yield Finding(
            "JetPack", WARNING, "no /etc/nv_tegra_release, as in a container", f"docker run -v {mount} …"
        )
    else:
        yield Finding("JetPack", OK, f"{facts.jetpack or 'of an unknown version'}, L4T {facts.l4t}")


def cpu(machine: Machine) -> Iterator[Finding]:
    if machine.cpu.overflows:
        slow = "INT8 files with weights beyond ±64 run on slower, exact kernels (16-bit sums would overflow)"
        yield Finding("CPU", NOTE, f"{machine.cpu}: {slow}")
    else:
        yield Finding("CPU", OK, str(machine.cpu))


def gpu(machine: Machine) -> Iterator[Finding]:
    if machine.cuda is None and machine.gpu is None:
        if machine.facts.is_jetson:
            yield Finding(
                "GPU", WARNING, "the CUDA driver can't be loaded", "sudo apt install nvidia-l4t-cuda"
            )
        else:
            yield Finding("GPU", NOTE, "no NVIDIA GPU: models run on the CPU")
        return
    driver = (
        f"driver for CUDA {machine.cuda[0]}.{machine.cuda[1]}" if machine.cuda else "no CUDA driver library"
    )
    yield Finding(
        "GPU",
        OK if machine.cuda else WARNING,
        f"{machine.gpu or 'integrated'}, {driver}",
        None if machine.cuda else "sudo apt install --reinstall libcuda1",
    )


def power(machine: Machine) -> Iterator[Finding]:
    facts = machine.facts
    if facts.power_mode is None:
        return
    best = next((mode for mode in facts.power_modes if "MAXN" in mode), None)
    if best in (None, facts.power_mode):
        yield Finding("power mode", OK, facts.power_mode)
    else:
        yield Finding(
            "power mode",
            NOTE,
            f"{facts.power_mode}; {best} is the fastest",
            f"sudo nvpmodel -m {best.split()[0]} && sudo jetson_clocks",
        )


def memory(machine: Machine) -> Iterator[Finding]:
    facts = machine.facts
    detail = f"{facts.free_mb:,.0f} MiB of {facts.memory_mb:,.0f} MiB free"
    if facts.free_mb >= LOW_MEMORY_MB:
        yield Finding("memory", OK, detail)
    else:
        stop_desktop = (
            "sudo systemctl isolate multi-user.target" if facts.is_jetson else "ps aux --sort=-rss | head"
        )
        yield Finding("memory", WARNING, f"{detail}: building an engine can fail", stop_desktop)
    if facts.is_jetson and facts.swap_mb == 0:
        yield Finding("swap", WARNING, "none: building an engine can be killed", ADD_SWAP)
    elif facts.swap_mb:
        yield Finding("swap", OK, f"{facts.swap_mb:,.0f} MiB")


def disk(machine: Machine) -> Iterator[Finding]:
    detail = f"{machine.disk_free_mb:,.0f} MiB free at {machine.disk}"
    if machine.disk_free_mb >= LOW_DISK_MB:
        yield Finding("disk", OK, detail)
    else:
        yield Finding(
            "disk", MISSING if machine.disk_free_mb < NO_DISK_MB else WARNING, detail, "sudo apt clean"
        )


def deployment(machine: Machine) -> Iterator[Finding]:
    found = machine.deployed
    if isinstance(found, str):
        yield Finding("deployed", WARNING, found, "slimdeploy deploy BUNDLE")
    elif found is None:
        if machine.role == "device":
            yield Finding("deployed", OK, "nothing yet (slimdeploy deploy BUNDLE)")
    else:
        info = found.manifest.info
        network = info.graph.origin.get("arch", "a network")
        yield Finding(
            "deployed",
            OK,
            f"{found.version}: {network}, {len(info.class_names)} classes, {info.preprocessing.size} pixels, "
            f"{found.variant} on {found.runtime}",
        )


def remote(machine: Machine) -> Iterator[Finding]:
    for name in ("ssh", "ssh-keygen"):
        if not machine.program(name):
            what = "needed by deploy --host" if name == "ssh" else "needed for signatures"
            yield Finding(name, WARNING, f"not installed: {what}", "sudo apt install openssh-client")


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    system,
    cpu,
    gpu,
    libraries,
    runtimes,
    bindings,
    providers,
    compiler,
    power,
    memory,
    disk,
    deployment,
    remote,
)
"""Each checks one aspect of the machine."""
