"""The device side on an emulated ARM64 CPU, a Jetson's architecture, with no ARM64 machine at hand.

    python tests/device/check.py [--keep build/device-check]

Debian's packages for arm64 (Python and what it needs) are unpacked into a folder, slimdeploy and its light
requirements are installed beside it from real aarch64 wheels, and qemu's user-mode emulation runs that
Python: no kernel support, no root, no chroot. There a bundle made here is deployed, its golden outputs are
compared, images are classified, and doctor is asked. Needs apt-get, dpkg and a package index in reach.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

import slimdeploy
from slimdeploy.toolchain.data.dataset import DataOptions, load_dataset
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import build_network

REPOSITORY = Path(slimdeploy.__file__).resolve().parent
CPU = "cortex-a76"
"""The nearest to Orin's Cortex-A78AE that qemu 7.2 knows."""
ONNXRUNTIME = "1.23.2"
"""The newest onnxruntime that runs under qemu 7.2."""
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep", type=Path, default=REPOSITORY / "build/device-check", help="Working folder."
    )
    work = parser.parse_args().keep.resolve()
    work.mkdir(parents=True, exist_ok=True)
    device = Emulated(work)
    say("bundle", lambda: make_bundle(work))
    checks = [
        say(name, function)
        for name, function in {
            "ARM64, without torch": device.check_python,
            "doctor": device.check_doctor,
            "deploy FP32": lambda: device.check_deploy(work, "fp32"),
            "deploy INT8": lambda: device.check_deploy(work, "int8"),
            "classify as the host does": lambda: device.check_classify(work),
            "rollback": device.check_rollback,
            "a damaged bundle is refused": lambda: device.check_damaged(work),
        }.items()
    ]
    print(
        json.dumps({"emulated": CPU, "checks": checks, "ok": all(check["ok"] for check in checks)}, indent=1)
    )
    return 0 if all(check["ok"] for check in checks) else 1


def say(name: str, function) -> dict[str, Any]:
    """Run a step; tell how it went and how long it took."""
    started = time.monotonic()
    try:
        facts, ok = function() or {}, True
    except (AssertionError, subprocess.CalledProcessError) as error:
        facts, ok = {"error": str(error)}, False
        if isinstance(error, subprocess.CalledProcessError):
            facts["stderr"] = str(error.stderr)[-2000:]
    seconds = round(time.monotonic() - started, 1)
    print(f"{'ok    ' if ok else 'FAILED'} {name} ({seconds} s)", file=sys.stderr)
    return {"check": name, "ok": ok, "seconds": seconds, **facts}


def run(*command: object, **options: Any) -> str:
    """Output of a command; raises CalledProcessError where it fails."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, text=True, capture_output=True, **options).stdout


def host_command(*arguments: object) -> str:
    return run(sys.executable, "-m", "slimdeploy.toolchain", *arguments)


def make_bundle(work: Path) -> None:
    """A small network on the digits, with random weights, in FP32 and INT8; and images of it."""
    digits = load_dataset(DataOptions("digits"))
    spec = build_graph("resnet18", classes=10, channels=[8] * 17)
    info = ModelInfo(spec, digits.preprocessing, digits.class_names)
    onnx.save(build_onnx(build_network(spec, seed=0), info), work / "fp32.onnx")
    # An untrained network: how many it gets right says nothing, so no drop is too large.
    calibrate = ("calibrate", work / "fp32.onnx", "--data", "digits", "--target", "cpu", "--method", "minmax")
    host_command(*calibrate, "--max-drop", "100", "-o", work / "int8.onnx", "--force")
    models = (work / "fp32.onnx", work / "int8.onnx")
    sets = ("--data", "digits", "--golden", "8", "--evaluation", "40")
    host_command("package", *models, *sets, "-o", work / "digits.slim.tar", "--force")
    shutil.rmtree(work / "images", ignore_errors=True)
    (work / "images").mkdir()
    for i, pixels in enumerate(digits.test.images[:6]):
        Image.fromarray(pixels).resize((40, 30)).save(work / f"images/{i}.png")
    shutil.rmtree(work / "store", ignore_errors=True)


class Emulated:
    """An ARM64 machine made of files: `root` is Debian's, `site` holds what pip installed."""

    def __init__(self, work: Path) -> None:
        self.qemu, self.root, self.site = work / "qemu", work / "root", work / "site"
        self.store = work / "store"
        if not (work / "complete").exists():
            say("qemu and Debian's packages for arm64", lambda: self._fetch_system(work))
            (work / "complete").touch()
        say("aarch64 wheels", lambda: self._install(work))

    def python(self, *arguments: object) -> str:
        interpreter = next(self.root.glob("usr/bin/python3.[0-9]*[0-9]"))
        emulator = self.qemu / "usr/bin/qemu-aarch64-static"
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.store), "PYTHONPATH": str(self.site)}
        return run(emulator, "-cpu", CPU, "-L", self.root, interpreter, *arguments, env=environment)

    def slimdeploy(self, *arguments: object) -> dict[str, Any]:
        return json.loads(self.python("-m", "slimdeploy.toolchain", *arguments, "--json"))

    def check_python(self) -> dict[str, Any]:
        script = (
            "import importlib.util as u, json, platform, numpy, onnxruntime; print(json.dumps({"
            "'machine': platform.machine(), 'python': platform.python_version(), 'numpy': numpy.__version__, "
            "'onnxruntime': onnxruntime.__version__, 'torch': bool(u.find_spec('torch'))}))"
        )
        facts = json.loads(self.python("-c", script))
        assert (facts["machine"], facts["torch"]) == ("aarch64", False), facts
        return facts

    def check_doctor(self) -> dict[str, Any]:
        document = self.slimdeploy("doctor")
        assert document["role"] == "device", document
        assert document["ok"], document
        return {"findings": {f["name"]: f["detail"] for f in document["findings"]}}

    def check_deploy(self, work: Path, precision: str) -> dict[str, Any]:
        bundle = work / "digits.slim.tar"
        made = self.slimdeploy(
            "deploy", bundle, "--root", self.store, "--precision", precision, "--threads", 1, "--seconds", 0.5
        )
        assert made["precision"] == precision, made
        assert made["golden"]["max_error"] <= made["golden"]["tolerance"], made
        assert made["accuracy"]["device"] == made["accuracy"]["host"], made
        return {"golden": made["golden"], "accuracy": made["accuracy"], "latency_ms": made["latency_ms"]}

    def check_classify(self, work: Path) -> dict[str, Any]:
        """The version deployed last, here and there, on images that have to be decoded and resized first."""
        common = ("classify", work / "images", "--root", self.store, "--top", 10, "--threads", 1)
        there = self.slimdeploy(*common)["results"]
        here = json.loads(host_command(*common, "--json"))["results"]
        worst = 0.0
        for ours, theirs in zip(here, there, strict=True):
            assert ours["image"] == theirs["image"]
            assert ours["top"][0]["index"] == theirs["top"][0]["index"], (ours, theirs)
            shares = [{p["index"]: p["probability"] for p in each["top"]} for each in (ours, theirs)]
            worst = max(worst, *(abs(shares[0][i] - shares[1][i]) for i in shares[0]))
        assert worst <= 0.02, worst
        return {"images": len(here), "largest_difference_of_a_probability": worst}

    def check_rollback(self) -> dict[str, Any]:
        return {
            "version": self.slimdeploy("deploy", "--rollback", "--root", self.store, "--threads", 1)[
                "version"
            ]
        }

    def check_damaged(self, work: Path) -> dict[str, Any]:
        content = np.fromfile(work / "digits.slim.tar", np.uint8)
        content[len(content) // 2] ^= 1
        content.tofile(work / "damaged.slim.tar")
        try:
            self.slimdeploy("deploy", work / "damaged.slim.tar", "--root", self.store)
        except subprocess.CalledProcessError as refused:
            said, code = refused.stderr, refused.returncode
        else:
            raise AssertionError("a damaged bundle was deployed")
        assert (code, said.count("\n")) == (2, 1), said
        return {"said": said.strip()}

    def _fetch_system(self, work: Path) -> None:
        for folder in (self.qemu, self.root):
            shutil.rmtree(folder, ignore_errors=True)
        unpack(download(work / "apt-host", None, ["qemu-user-static"], alone=True), self.qemu)
        unpack(download(work / "apt-arm64", "arm64", ["python3", "libstdc++6"]), self.root)

    def _install(self, work: Path) -> None:
        """slimdeploy as a device installs it; its wheels are resolved for ARM64, not for this machine."""
        shutil.rmtree(self.site, ignore_errors=True)
        wheels, source = work / "wheels", work / "source/slimdeploy"
        shutil.rmtree(wheels, ignore_errors=True)
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(REPOSITORY, source, ignore=only_the_package)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
        run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source)
        version = next(self.root.glob("usr/bin/python3.[0-9]*[0-9]")).name.removeprefix("python")
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        wheel = next(wheels.glob("slimdeploy-*.whl"))
        run(
            *pip, "install", "--target", self.site, *platforms, "--python-version", version,
            "--only-binary=:all:", f"{wheel}[device,cpu]", f"onnxruntime=={ONNXRUNTIME}",
        )  # fmt: skip


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


def only_the_package(folder: str, names: list[str]) -> list[str]:
    """For copytree: leave out what is not installed (and may be large)."""
    if Path(folder) != REPOSITORY:
        return [name for name in names if name == "__pycache__"]
    return [name for name in names if name.startswith(".") or name in ("tests", "data", "runs", "build")]


if __name__ == "__main__":
    sys.exit(main())
