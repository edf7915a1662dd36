"""Which Python environment a device needs, by what doctor finds there.

Also run on the device from the wheel itself, before anything is installed: what is imported here needs only
Python's own library.
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
    """The extras of slimdeploy, and whether the environment lets the system's packages in."""

    extras: tuple[str, ...]
    system_packages: bool


def needs(machine: Machine) -> Needs:
    """What runs models there: JetPack's TensorRT on a Jetson, pip's on another machine with an NVIDIA driver,
    else onnxruntime alone. pycuda is compiled, so only where there is a CUDA compiler.
    """
    if machine.facts.is_jetson:
        return Needs(("device", "cpu", "cuda") if machine.nvcc else ("device", "cpu"), system_packages=True)
    return Needs(("device", "gpu") if machine.cuda else ("device", "cpu"), system_packages=False)


def probe() -> None:
    """Print what this machine is, what it needs and what doctor finds, as one line of JSON."""
    machine = this_machine("device")
    document = {
        "python": platform.python_version(),
        "architecture": platform.machine(),
        **asdict(needs(machine)),
        "doctor": report(machine, examine(machine)),
    }
    json.dump(document, sys.stdout)
