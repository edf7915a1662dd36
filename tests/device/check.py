"""The device side on an emulated ARM64 CPU, a Jetson's architecture, with no ARM64 machine at hand.

    python tests/device/check.py [--keep build/device-check]

Debian's packages for arm64 (Python and what it needs) are unpacked into a folder, and qemu's user-mode
emulation runs that Python: no kernel support, no root, no chroot. It is the `python3` of an SSH server on the
loopback. `deploy --bootstrap` makes the environment there, from real aarch64 wheels and without a package
index; then a bundle made here is deployed, its golden outputs are compared, images are classified, and doctor
is asked. Needs apt-get, dpkg, sshd, and a package index in reach of this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

import slimdeploy
from slimdeploy.tests.device import emulated
from slimdeploy.tests.device.emulated import run
from slimdeploy.tests.ssh_server import find_sshd, ssh_server
from slimdeploy.toolchain.data.dataset import DataOptions, load_dataset
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import build_network

REPOSITORY = Path(slimdeploy.__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep", type=Path, default=REPOSITORY / "build/device-check", help="Working folder."
    )
    work = parser.parse_args().keep.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not find_sshd():
        sys.exit("device-check needs sshd: sudo apt install openssh-server")
    with Emulated(work) as device:
        say("bundle", lambda: make_bundle(work))
        checks = [
            say(name, function)
            for name, function in {
                "bootstrap over SSH": lambda: device.check_bootstrap(work),
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
        json.dumps(
            {"emulated": emulated.CPU, "checks": checks, "ok": all(check["ok"] for check in checks)}, indent=1
        )
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
    """An ARM64 machine made of files: `root` is Debian's, `home` its user's; behind an SSH server here."""

    def __init__(self, work: Path) -> None:
        self.home, self.store = work / "home", work / "home/store"
        if not (work / "complete").exists():
            say("qemu and Debian's packages for arm64", lambda: emulated.fetch_system(work))
            (work / "complete").touch()
        say("aarch64 wheels", lambda: emulated.fetch_wheels(work))
        self.wheels = work / "wheels"
        for folder in (self.home, work / "ssh"):
            shutil.rmtree(folder, ignore_errors=True)
        (self.home / "bin").mkdir(parents=True)
        (self.home / "bin/python3").symlink_to(emulated.python(work))
        path = f"{self.home}/.local/bin:{self.home}/bin:{os.environ['PATH']}"
        self._server = contextlib.ExitStack()
        self._server.enter_context(ssh_server(work / "ssh", {"HOME": str(self.home), "PATH": path}))
        self.config = work / "ssh/config"

    def __enter__(self) -> Emulated:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.close()

    def shell(self, *words: object) -> str:
        return run("ssh", "-F", self.config, "device", shlex.join(map(str, words)))

    def slimdeploy(self, *arguments: object) -> dict[str, Any]:
        return json.loads(self.shell("slimdeploy", *arguments, "--json"))

    def check_bootstrap(self, work: Path) -> dict[str, Any]:
        reach = ("--host", "device", "--ssh-config", self.config, "--json")
        command = ("deploy", "--bootstrap", "--wheels", self.wheels, *reach)
        (made,), (again,) = (json.loads(host_command(*command))["hosts"] for _ in range(2))
        assert made["error"] is None, made
        assert (made["environment"]["made"], again["environment"]["made"]) == (True, False), (made, again)
        size = int(run("du", "-sm", made["environment"]["path"]).split()[0])
        facts = {key: made["environment"][key] for key in ("python", "architecture", "extras")}
        return {**facts, "seconds": [made["seconds"], again["seconds"]], "megabytes": size}

    def check_python(self) -> dict[str, Any]:
        script = (
            "import importlib.util as u, json, platform, numpy, onnxruntime; print(json.dumps({"
            "'machine': platform.machine(), 'python': platform.python_version(), 'numpy': numpy.__version__, "
            "'onnxruntime': onnxruntime.__version__, 'torch': bool(u.find_spec('torch'))}))"
        )
        python = self.home / ".local/lib/slimdeploy/current/bin/python"
        facts = json.loads(self.shell(python, "-c", script))
        assert (facts["machine"], facts["torch"]) == ("aarch64", False), facts
        return facts

    def check_doctor(self) -> dict[str, Any]:
        document = self.slimdeploy("doctor")
        assert document["role"] == "device", document
        assert document["ok"], document
        return {"findings": {f["name"]: f["detail"] for f in document["findings"]}}

    def check_deploy(self, work: Path, precision: str) -> dict[str, Any]:
        bundle = work / "digits.slim.tar"
        settings = ("--root", self.store, "--precision", precision, "--threads", 1, "--seconds", 0.5)
        command = ("deploy", bundle, "--host", "device", "--ssh-config", self.config, *settings, "--json")
        (host,) = json.loads(host_command(*command))["hosts"]
        assert host["error"] is None, host
        made = host["deployment"]
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


if __name__ == "__main__":
    sys.exit(main())
