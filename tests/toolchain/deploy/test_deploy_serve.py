"""The HTTP server as a process: right answers, limits, metrics and draining."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from slimdeploy.tests.toolchain.deploy.server_process import JPEG, ask, encoded, running
from slimdeploy.toolchain.deploy import device
from slimdeploy.toolchain.deploy.http import Served, ServeOptions, Service
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.deploy.predict import top_classes
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session


@pytest.fixture(scope="module")
def server(models):
    with running(
        "--model", models["fp32"], "--latency-ms", 10_000, "--max-upload-mb", 0.1, "--threads", 1
    ) as started:
        yield started[1]


def test_classify(server, models, random_images):
    images = random_images(5)
    with open_session(models["fp32"], options=SessionOptions(threads=1)) as session:
        for pixels in images:
            response, content = ask(
                server, "POST", "/classify?top=3", encoded(pixels), {"Content-Type": "image/png"}
            )
            document = json.loads(content)
            logits = session.run(normalise(pixels[None], session.info.preprocessing))
            (expected,) = top_classes(logits, session.info.class_names, 3)
            assert response.status == 200
            assert [p["label"] for p in document["top"]] == [p.label for p in expected]
            found = [p["probability"] for p in document["top"]]
            np.testing.assert_allclose(found, [p.probability for p in expected], rtol=1e-5)
            assert document["batch"] >= 1
            assert document["ms"]["total"] >= document["ms"]["inference"] > 0


def test_many_at_once_get_their_own_answers(server, random_images):
    images = [encoded(pixels) for pixels in random_images(24, seed=5)]
    alone = [json.loads(ask(server, "POST", "/classify", i, JPEG)[1])["top"] for i in images]
    together: list = [None] * len(images)

    def one(i: int) -> None:
        together[i] = json.loads(ask(server, "POST", "/classify", images[i], JPEG)[1])

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, found in zip(alone, together, strict=True):
        assert [p["index"] for p in found["top"]] == [p["index"] for p in expected]
        np.testing.assert_allclose(
            [p["probability"] for p in found["top"]], [p["probability"] for p in expected], rtol=1e-4
        )
    assert max(found["batch"] for found in together) > 1


def test_healthz_and_metrics(server, random_images):
    response, content = ask(server, "GET", "/healthz")
    assert (response.status, json.loads(content)["status"]) == (200, "ok")
    ask(server, "POST", "/classify", encoded(random_images(1)[0]), JPEG)
    response, content = ask(server, "GET", "/metrics")
    text = content.decode()
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert re.search(r'^slimdeploy_requests_total\{code="200"\} [1-9]', text, re.MULTILINE)
    assert re.search(r"^slimdeploy_batch_images_count [1-9]", text, re.MULTILINE)
    assert re.search(r"^slimdeploy_queue_images 0\.0$", text, re.MULTILINE)
    assert re.search(r"^process_resident_memory_bytes [1-9]", text, re.MULTILINE)
    assert 'backend="onnxruntime-cpu"' in text


def narrow() -> bytes:
    return encoded(np.zeros((4, 400, 3), np.uint8))


def bomb() -> bytes:
    """9,000 × 9,000 pixels in 69 bytes: only its header is ever read."""
    png = bytearray(encoded(np.zeros((8, 8, 3), np.uint8)))
    png[16:24] = (9_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(bytes(png[12:29])).to_bytes(4, "big")
    return bytes(png)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "code", "message"),
    [
        ("POST", "/classify", b"no image", JPEG, 400, "not an image"),
        ("POST", "/classify", b"", JPEG, 400, "not an image"),
        ("POST", "/classify", narrow(), JPEG, 400, "too narrow"),
        ("POST", "/classify", bomb(), JPEG, 400, "at most 64000000 are decoded"),
        ("POST", "/classify", bytes(200_000), JPEG, 413, "at most 104857 bytes"),
        ("POST", "/classify", b"x", {}, 415, "Content-Type missing"),
        ("POST", "/classify", b"x", {"Content-Type": "text/html"}, 415, "Content-Type text/html"),
        ("POST", "/classify?top=0", b"x", JPEG, 400, "top=0"),
        ("POST", "/classify?top=1e9", b"x", JPEG, 400, "top=1e9"),
        ("POST", "/classify?top=%F0%9D%9F%99", b"x", JPEG, 400, "top="),
        ("GET", "/classify", None, {}, 405, "Not Allowed"),
        ("GET", "/nowhere", None, {}, 404, "Not Found"),
        ("GET", "/healthz/", None, {}, 404, "Not Found"),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_bad_requests(server, method, path, body, headers, code, message):
    response, content = ask(server, method, path, body, headers)
    assert response.status == code
    assert message in json.loads(content)["error"]


def test_answers_are_sent_at_once(server):
    """Head and body are two small packets: the second must not wait until the first is acknowledged."""
    connection = http.client.HTTPConnection("127.0.0.1", server, timeout=30)
    spent = []
    for _ in range(20):  # the first few are acknowledged at once by every kernel
        started = time.monotonic()
        connection.request("GET", "/nowhere")
        connection.getresponse().read()
        spent.append(time.monotonic() - started)
    assert min(spent[10:]) < 0.03


def test_image_that_does_not_arrive():
    """408 after `body_s`, while the rest of the interface answers on."""
    options = ServeOptions(body_s=0.1)
    with ThreadPoolExecutor(1) as threads:
        service = Service(Served(Model(), None, "net", threads), threads, options)
        parts = iter([{"type": "http.request", "body": b"\xff\xd8", "more_body": True}])

        async def receive():
            for part in parts:
                return part
            return await asyncio.sleep(60)

        with pytest.raises(HTTPException) as refused:
            asyncio.run(service.classify(Request(UPLOAD, receive)))
    assert (refused.value.status_code, refused.value.detail) == (408, "the image didn't arrive within 0.1 s")


def test_model_that_fails_is_not_the_clients_fault(random_images):
    """500, and the service goes on: TensorRT's own errors are SlimdeployErrors too."""

    def fail(images):
        raise SlimdeployError("TensorRT failed to run the engine")

    async def receive():
        return {"type": "http.request", "body": encoded(random_images(1)[0])}

    async def ask_twice(service):
        async with service:
            for _ in range(2):
                with pytest.raises(HTTPException) as failed:
                    await service.classify(Request(UPLOAD, receive))
                assert failed.value.status_code == 500
                assert failed.value.detail == "the model failed: TensorRT failed to run the engine"

    with ThreadPoolExecutor(1) as threads:
        info = SimpleNamespace(preprocessing=Preprocessing(16, (0.5,) * 3, (0.25,) * 3))
        service = Service(Served(Model(fail), info, "net", threads), threads, ServeOptions())
        asyncio.run(ask_twice(service))


UPLOAD = {
    "type": "http",
    "method": "POST",
    "path": "/classify",
    "query_string": b"",
    "headers": [(b"content-type", b"image/png")],
}


class Model:
    """A session that is run by `run`."""

    backend = precision = "none"

    def __init__(self, run=None):
        self.run = run


def test_upload_without_an_announced_length(server):
    connection = http.client.HTTPConnection("127.0.0.1", server, timeout=30)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it hangs up in the middle
        connection.request("POST", "/classify", iter([bytes(20_000)] * 50), JPEG)
    with contextlib.suppress(ConnectionResetError, http.client.RemoteDisconnected):
        assert connection.getresponse().status == 413
    assert ask(server, "GET", "/healthz")[0].status == 200


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Type: image/jpeg\r\nContent-Length: -5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Type: image/jpeg\r\nContent-Length: 50\r\n\r\nshort",
        b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Type: image/jpeg\r\n\r\nZZ\r\n",
    ],
    ids=["bytes", "long", "negative", "short", "chunk"],
)
def test_nonsense_on_the_wire(server, nonsense):
    hung_up = contextlib.suppress(BrokenPipeError, ConnectionResetError)
    with socket.create_connection(("127.0.0.1", server), timeout=10) as connection, hung_up:
        connection.sendall(nonsense)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    assert ask(server, "GET", "/healthz")[0].status == 200


def test_binds_to_loopback_alone(server):
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    addresses = [fields.split()[1] for fields in listening if fields.split()[3] == "0A"]
    assert f"0100007F:{server:04X}" in addresses
    assert f"00000000:{server:04X}" not in addresses


def refuses(port: int) -> bool:
    """Whether new connections are refused, within 20 s."""
    for _ in range(400):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.05)
    return False


def test_drains_on_sigterm(bundle, tmp_path, random_images):
    """A request whose image arrives after SIGTERM is still answered; then the process ends with 0."""
    store = Store(tmp_path / "store")
    device.install(bundle, store, DeployOptions(threads=1, seconds=0.01))
    content = encoded(random_images(1)[0])
    with running("--root", store.root, "--latency-ms", 60_000) as (process, port):
        head = "POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(head.encode() + content[:10])
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert refuses(port)
            connection.sendall(content[10:])
            answer = connection.makefile("rb").read()  # until the server closes it
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b'"model":"0001-net"' in answer
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out) == {"model": "0001-net", "answers": {"200": 1}}


def test_port_in_use(server, models):
    command = [
        sys.executable,
        "-m",
        "slimdeploy.toolchain",
        "serve",
        "--model",
        models["fp32"],
        "--port",
        str(server),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"slimdeploy: cannot listen on 127.0.0.1:{server}: Address already in use; "
    )


def test_a_log_that_nobody_reads_stops_no_server(models):
    """More requests that aren't HTTP than a line each would fit into a pipe."""
    with running("--model", models["fp32"], "--threads", 1) as (_, port):
        for _ in range(2000):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"no request\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_nothing_deployed(tmp_path):
    command = [sys.executable, "-m", "slimdeploy.toolchain", "serve", "--root", tmp_path, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nothing is deployed" in done.stderr
