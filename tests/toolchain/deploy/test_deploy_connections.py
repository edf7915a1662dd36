"""Connections that hold nothing up: idle ones, slow ones, what isn't HTTP, and the end of the server."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import threading
import time
from contextlib import ExitStack

import numpy as np
import onnx
import pytest

from slimdeploy.tests.toolchain.deploy.server_process import JPEG, ask, encoded, running
from slimdeploy.toolchain.deploy import connections


@pytest.fixture(scope="module")
def server(models):
    with running("--model", models["fp32"], "--latency-ms", 60_000, "--threads", 1) as started:
        yield started[1]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], dict]:
    """Status, headers and JSON of what comes on a connection until the server closes it."""
    head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body)


def test_idle_connections_keep_nobody_out(server, random_images):
    """More of them than are held: the oldest make place."""
    content = encoded(random_images(1)[0])
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(connections.CONNECTIONS + 40)]
        assert ask(server, "GET", "/healthz")[0].status == 200
        assert ask(server, "POST", "/classify", content, JPEG)[0].status == 200
        assert idle[0].recv(1) == b""  # closed
        started = time.monotonic()
        assert idle[-1].recv(1) == b""
        assert time.monotonic() - started < connections.HEAD_S + 20


def test_a_client_that_sends_requests_keeps_its_connection_among_idle_ones(server):
    """It is the oldest connection, but not the one that was idle longest."""
    client = http.client.HTTPConnection("127.0.0.1", server, timeout=30)
    client.connect()
    connection = client.sock
    with ExitStack() as stack:
        for number in range(connections.CONNECTIONS + 40):
            idle = stack.enter_context(connect(server))
            if number % 100 == 0:
                client.request("GET", "/healthz")
                client.getresponse().read()
            if number == 0:
                first = idle
        assert first.recv(1) == b""  # closed
        client.request("GET", "/healthz")
        assert client.getresponse().read()
    assert client.sock is connection, "it was closed, and the client opened another"
    client.close()


FEW_FILES = (
    "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300)); "
    "runpy.run_module('slimdeploy.toolchain', run_name='__main__')"
)
"""A server that holds 150 connections at a time."""


def test_requests_that_arrive_together_are_all_answered(models):
    """On more connections than are held at a time, before the server has read any of them."""
    with (
        running("--model", models["fp32"], "--threads", 1, program=("-c", FEW_FILES)) as (process, port),
        ExitStack() as stack,
    ):
        process.send_signal(signal.SIGSTOP)
        try:
            clients = [stack.enter_context(connect(port)) for _ in range(220)]
            for client in clients:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        finally:
            process.send_signal(signal.SIGCONT)
        codes = [answer(client)[0] for client in clients]
    assert set(codes) <= {200, 503}
    assert codes.count(200) >= 150


def test_a_head_that_does_not_arrive(server):
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        code, headers, document = answer(connection)
    assert (code, headers["connection"]) == (408, "close")
    assert document == {"error": "the request's head didn't arrive within 5 s"}


@pytest.mark.parametrize("nonsense", [b"\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_what_is_not_http_is_told_in_json(server, nonsense):
    with connect(server) as connection:
        connection.sendall(nonsense)
        code, headers, document = answer(connection)
    assert (code, headers["content-type"]) == (400, "application/json")
    assert document == {"error": "not an HTTP/1.1 request"}


def test_a_body_that_is_not_http_is_told_in_json(server):
    with connect(server) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nno length\r\n"
        )
        code, headers, document = answer(connection)
    assert (code, headers["connection"]) == (400, "close")
    assert document == {"error": "the request's body is not HTTP/1.1"}


def test_answers_without_a_request_are_counted_once(server):
    """The application doesn't see them; a request whose body breaks off, it does."""

    def counted() -> float:
        text = ask(server, "GET", "/metrics")[1].decode()
        found = re.search(r'^slimdeploy_requests_total\{code="400"\} (\S+)', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    for sent in (b"nonsense\r\n\r\n", head + b"no length\r\n"):
        before = counted()
        with connect(server) as connection:
            connection.sendall(sent)
            assert answer(connection)[0] == 400
        assert counted() == before + 1


def test_a_client_in_the_middle_of_its_requests_gets_each_answered_at_the_end(models, random_images):
    """The last answer says that the connection closes; nothing is reset."""
    content, answers, ended = encoded(random_images(1)[0]), [], []

    def client(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        answered = time.monotonic()
        while True:
            try:
                connection.request("POST", "/classify", content, JPEG)
                response = connection.getresponse()
                response.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                # On a machine that is so busy that the client came too late.
                ended.append(time.monotonic() - answered > connections.LINGER_S / 2)
                return
            answered = time.monotonic()
            answers.append(response.status)
            if response.headers.get("Connection") == "close":
                ended.append(True)
                return
            time.sleep(0.05)

    with running("--model", models["fp32"], "--latency-ms", 60_000, "--threads", 1) as (process, port):
        threads = [threading.Thread(target=client, args=(port,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
    assert process.returncode == 0
    assert ended == [True] * 4, "a connection was closed without a word"
    assert set(answers) == {200}


def test_logits_that_are_not_finite_are_an_error_in_json(models, tmp_path, random_images):
    """Every weight is finite, and their sums are not."""
    model = onnx.load(models["fp32"])
    bias = next(w for w in model.graph.initializer if list(w.dims) == [4])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, 3.4e38, np.float32), bias.name))
    weight = next(w for w in model.graph.initializer if list(w.dims) == [4, 8])
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((4, 8), 3.4e38, np.float32), weight.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with running("--model", tmp_path / "nan.onnx", "--threads", 1) as (_, port):
        response, body = ask(port, "POST", "/classify", encoded(random_images(1)[0]), JPEG)
    assert (response.status, json.loads(body)) == (
        500,
        {"error": "the model computed NaN or infinite logits"},
    )


@pytest.mark.parametrize(
    ("kind", "name"), [("TIFF", "image/tiff"), ("BMP", "image/bmp"), ("WEBP", "image/webp")]
)
def test_formats(server, random_images, kind, name):
    content = encoded(random_images(1)[0], kind)
    assert ask(server, "POST", "/classify", content, {"Content-Type": name})[0].status == 200


def test_a_photo_of_twelve_megapixels_is_taken_by_default(server):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3024, 4032, 3), dtype=np.uint8)
    content = encoded(pixels, "JPEG")
    assert len(content) > 4 << 20
    response, body = ask(server, "POST", "/classify", content, JPEG)
    assert response.status == 200, body
