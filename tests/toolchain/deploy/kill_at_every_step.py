"""A program for tests: runs an action again and again, killed with SIGKILL before its 1st, 2nd, 3rd …
change to a file, until it gets through.

    python kill_at_every_step.py package|deploy|rollback ROOT ARGUMENT…

For each run ROOT is copied afresh to ROOT-<step>; one JSON object a run is printed: the step, the event it
was killed before, and the copy's path.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401  (imported before the fork; no session is open then)

from slimdeploy.tests.toolchain.deploy.stores import CHANGES, OPTIONS
from slimdeploy.toolchain.deploy import bundle, device
from slimdeploy.toolchain.deploy.samples import Images
from slimdeploy.toolchain.deploy.store import Store


def package(root: Path, models: list[str]) -> None:
    zeros = np.zeros((2, 16, 16, 3), np.uint8)
    bundle.write_bundle(
        root / "net.slim.tar", [Path(m) for m in models], Images(zeros, zeros[:0], np.zeros(0), "zeros")
    )


def deploy(root: Path, arguments: list[str]) -> None:
    device.install(Path(arguments[0]), Store(root), OPTIONS)


def rollback(root: Path, arguments: list[str]) -> None:
    device.rollback(Store(root), OPTIONS)


def kill_before(step: int, root: Path, report: int) -> None:
    """Count changes below `root`; at number `step` say which it is, and die."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (not writes and event not in CHANGES) or not str(arguments[0]).startswith(str(root)):
            return
        count += 1
        if count == step:
            os.write(report, f"{event} {arguments[0]}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    action, original, arguments = globals()[sys.argv[1]], Path(sys.argv[2]), sys.argv[3:]
    for step in range(1, 1000):
        root = original.with_name(f"{original.name}-{step}")
        shutil.copytree(original, root)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            kill_before(step, root, writer)
            action(root, arguments)
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        event = os.read(reader, 4096).decode()
        os.close(reader)
        print(json.dumps({"step": step, "event": event, "root": str(root), "status": status}), flush=True)
        if status != signal.SIGKILL:
            return


main()
