"""`slimdeploy serve` as a process of its own, and requests to it."""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

JPEG = {"Content-Type": "image/jpeg"}


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@contextlib.contextmanager
def running(
    *arguments: object, program: tuple[str, ...] = ("-m", "slimdeploy.toolchain"), env: dict | None = None
):
    """A server on a free port; yields it with its port. Ended by SIGTERM. `program`: what Python runs."""
    command = [
        sys.executable,
        *program,
        "serve",
        "--port",
        "0",
        "--json",
        *map(str, arguments),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        line = process.stderr.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+) serves ", line)
        if not found:
            process.kill()
            pytest.fail(line + process.stderr.read())
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def ask(port: int, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response, response.read()
