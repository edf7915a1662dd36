"""An ARM64 machine made of files: Debian's packages in a folder, whose Python qemu's user mode runs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.deploy.wheel import write_wheel

CPU = "cortex-a76"
"""The nearest to Orin's Cortex-A78AE that qemu 7.2 knows."""
ONNXRUNTIME = "1.23.2"
"""The newest onnxruntime that runs under qemu 7.2."""
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def fetch_system(work: Path) -> None:
    """Unpack qemu and Debian's Python for arm64 below `work`."""
    qemu, root = work / "qemu", work / "root"
    for folder in (qemu, root):
        shutil.rmtree(folder, ignore_errors=True)
    unpack(download(work / "apt-host", None, ["qemu-user-static"], alone=True), qemu)
    unpack(download(work / "apt-arm64", "arm64", ["python3", "python3-venv", "libstdc++6"]), root)
    # A script in the place of python3: what Python starts by its own name is emulated as well.
    words = [qemu / "usr/bin/qemu-aarch64-static", "-cpu", CPU, "-L", root, "-0"]
    script = f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$0" {program(root)} "$@"\n'
    python(work).unlink()
    python(work).write_text(script)
    python(work).chmod(0o755)


def program(root: Path) -> Path:
    return next(root.glob("usr/bin/python3.[0-9]*[0-9]"))


def python(work: Path) -> Path:
    """Runs the emulated Python."""
    return work / "root/usr/bin/python3"


def fetch_wheels(work: Path) -> None:
    """Fill `wheels` below `work` with what `deploy --wheels` takes, for ARM64."""
    wheels = work / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir()
    wheel = write_wheel(wheels)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    version = program(work / "root").name.removeprefix("python")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--dest", wheels)
    wanted = (f"{wheel}[device,cpu]", f"onnxruntime=={ONNXRUNTIME}")
    run(*pip, *platforms, "--python-version", version, "--only-binary=:all:", *wanted)


def download(
    state: Path, architecture: str | None, packages: Sequence[str], *, alone: bool = False
) -> list[Path]:
    """Fetch Debian packages, with what they need unless `alone`; in an apt state of its own, as any user."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "Dir::State::Lists": state / "lists", "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache", "Debug::NoLocking": 1,
        "APT::Sandbox::User": "", "APT::Install-Recommends": 0,
    }  # fmt: skip
    if architecture:
        settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
    run(*apt, "update")
    if alone:
        run(*apt, "download", *packages, cwd=state / "cache/archives")
    else:
        run(*apt, "--yes", "--download-only", "install", *packages)
    return sorted((state / "cache/archives").glob("*.deb"))


def unpack(packages: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for package in packages:
        run("dpkg", "-x", package, folder)


def run(*command: object, **options: Any) -> str:
    """Output of a command; raises CalledProcessError where it fails."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, text=True, capture_output=True, **options).stdout
