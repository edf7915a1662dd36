"""A server over pycuda: contexts are taken on and off in the thread that uses them, so that reloads and ends
of threads neither fail nor abort the process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_libcuda
import pytest

from slimdeploy.tests.toolchain.deploy.server_process import JPEG, ask, encoded, running

SERVER = Path(__file__).with_name("serve_over_device.py")

MISUSE = """
import threading
from slimdeploy.toolchain.runtime.device import open_device

def use():
    device = open_device()
    device.stream()
    {end}

thread = threading.Thread(target=use)
thread.start()
thread.join()
print("alive")
"""


@pytest.fixture(scope="module", params=["model", "genuine"])
def environment(request, tmp_path_factory) -> dict[str, str]:
    if request.param == "model":
        return fake_libcuda.over_the_model()
    if reason := fake_libcuda.why_not_genuine():
        pytest.skip(reason)
    return fake_libcuda.over_genuine_pycuda(tmp_path_factory.mktemp("libcuda"))


def run(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)


def test_a_thread_that_closes_its_device_may_end_and_one_that_does_not_aborts(environment):
    """The second half says that the fault would be seen."""
    done = run(MISUSE.format(end="device.close()"), environment)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
    done = run(MISUSE.format(end="kept.append(device)").replace("def use", "kept = []\ndef use"), environment)
    assert done.returncode == -signal.SIGABRT
    assert "context stack was not empty" in done.stderr


def test_server_reloads_and_ends_over_pycuda(environment, models, tmp_path, random_images):
    path, content = tmp_path / "model.onnx", encoded(random_images(1)[0])
    shutil.copy(models["fp32"], path)

    def told(port: int) -> tuple[str, float]:
        document = dict(
            line.rsplit(" ", 1)
            for line in ask(port, "GET", "/metrics")[1].decode().splitlines()
            if not line.startswith("#")
        )
        results = ('slimdeploy_reloads_total{result="done"}', 'slimdeploy_reloads_total{result="failed"}')
        return json.loads(ask(port, "GET", "/healthz")[1])["precision"], sum(
            float(document.get(name, 0)) for name in results
        )

    def reload(process: subprocess.Popen[str], port: int, model: Path, reloads: int) -> str:
        shutil.copy(model, tmp_path / "new.onnx")
        os.replace(tmp_path / "new.onnx", path)
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        while told(port)[1] < reloads:
            assert time.monotonic() < end, "never reloaded"
            time.sleep(0.05)
        assert ask(port, "POST", "/classify", content, JPEG)[0].status == 200
        return told(port)[0]

    started = running(
        "--model", path, "--threads", 1, "--latency-ms", 60_000, program=(str(SERVER),), env=environment
    )
    with started as (process, port):
        assert ask(port, "POST", "/classify", content, JPEG)[0].status == 200
        assert reload(process, port, models["int8"], 1) == "int8"
        assert reload(process, port, models["fp32"], 2) == "fp32"
        path.with_suffix(".broken").touch()
        assert reload(process, port, models["int8"], 3) == "fp32"  # the warm-up fails, and its thread ends
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "context" not in said, said
