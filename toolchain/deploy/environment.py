"""The Python environment that a device needs, according to doctor's findings.

Also run on the device from the wheel, before anything is installed: this file may import only Python's
standard library.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass

from slimdeploy.toolchain.deploy.doctor import examine, report
from slimdeploy.toolchain.deploy.machine import Machine, this_machine


@dataclass(frozen=True)
class Needs:
    """The extras of slimdeploy, and whether the environment includes system packages."""

    extras: tuple[str, ...]
    system_packages: bool


def needs(machine: Machine) -> Needs:
    """The runtime for a device: JetPack's TensorRT on a Jetson, pip's on another machine with an NVIDIA
    driver, else onnxruntime. pycuda is compiled, so only if there is a CUDA compiler.
    """
    if machine.facts.is_jetson:
        return Needs(("device", "cpu", "cuda") if machine.nvcc else ("device", "cpu"), system_packages=True)
    return Needs(("device", "gpu") if machine.cuda else ("device", "cpu"), system_packages=False)


def probe() -> None:
    """Print facts, needs and doctor's findings of this machine as one line of JSON."""
    machine = this_machine("device")
    document = {
        "python": platform.python_version(),
        "architecture": platform.machine(),
        **asdict(needs(machine)),
        "doctor": report(machine, examine(machine)),
    }
    json.dump(document, sys.stdout)
