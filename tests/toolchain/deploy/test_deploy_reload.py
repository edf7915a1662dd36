"""A running server takes up what is deployed, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest

from slimdeploy.tests.toolchain.deploy.server_process import JPEG, ask, encoded, running
from slimdeploy.toolchain.deploy import device
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.deploy.running import Registration, ServerState, wait_for_servers
from slimdeploy.toolchain.deploy.store import Store

OPTIONS = DeployOptions(threads=1, seconds=0.01)


@pytest.fixture
def store(bundle, tmp_path) -> Store:
    made = Store(tmp_path / "store")
    # Which of the bundle's models is the fastest depends on the machine.
    device.install(bundle, made, replace(OPTIONS, precision="int8"))
    return made


def serves(port: int) -> str:
    return json.loads(ask(port, "GET", "/healthz")[1])["model"]


def until_served(port: int, name: str) -> None:
    end = time.monotonic() + 30
    while serves(port) != name:
        assert time.monotonic() < end, f"{name} was never served"
        time.sleep(0.05)


def test_deploy_and_rollback_reach_a_running_server_without_a_lost_request(
    store, other_bundle, random_images
):
    content, answers, stop = encoded(random_images(1)[0]), [], threading.Event()

    def client(port: int) -> None:
        while not stop.is_set():
            response, body = ask(port, "POST", "/classify", content, JPEG)
            answers.append((response.status, json.loads(body).get("model")))

    with running("--root", store.root, "--latency-ms", 60_000, "--threads", 1) as (process, port):
        threads = [threading.Thread(target=client, args=(port,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            made = device.install(other_bundle, store, OPTIONS)
            url = f"http://127.0.0.1:{port}"
            assert wait_for_servers(store.root, made.version) == [ServerState(url, "0002-other")]
            assert serves(port) == "0002-other"
            version = device.rollback(store, OPTIONS).version
            assert wait_for_servers(store.root, version) == [ServerState(url, "0001-net")]
            time.sleep(0.2)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        metrics = ask(port, "GET", "/metrics")[1].decode()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert {status for status, _ in answers} == {200}
    names = [name for _, name in answers]
    assert set(names) == {"0001-net", "0002-other"}
    assert names[-1] == "0001-net"
    assert 'slimdeploy_model_info{backend="onnxruntime-cpu",model="0001-net"' in metrics
    assert "0002-other" not in metrics
    assert 'slimdeploy_reloads_total{result="done"} 2.0' in metrics
    told = [
        line.replace("int8 on", "fp32 on") for line in said.splitlines()
    ]  # whichever was the fastest here
    assert told == [
        f"{url} serves {name} now, fp32 on onnxruntime-cpu" for name in ("0002-other", "0001-net")
    ]
    assert wait_for_servers(store.root, version) == []  # it has taken its entry away


def test_version_that_cannot_be_opened_leaves_the_old_one_serving(store, other_bundle, random_images):
    with running("--root", store.root, "--threads", 1) as (process, port):
        with store.lock():  # as a deploy would, but with a model that changes behind its back
            folder = store.versions / "0002-bad"
            shutil.copytree(store.current(), folder)
            document = json.loads((folder / "deployment.json").read_text())
            (folder / document["model"]).write_bytes(b"damaged")
            store._activate(["0001-net", "0002-bad"], installed=2)
        (state,) = wait_for_servers(store.root, "0002-bad")
        assert state.version == "0001-net"
        assert "has changed since it was deployed" in (state.error or "")
        content = encoded(random_images(1)[0])
        assert json.loads(ask(port, "POST", "/classify", content, JPEG)[1])["model"] == "0001-net"
        device.install(other_bundle, store, OPTIONS)
        until_served(port, "0003-other")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    first, second = said.splitlines()
    assert "could not open 0002-bad: " in first
    assert first.endswith("; still serving 0001-net")
    assert "serves 0003-other now" in second


def test_model_file_is_read_again_on_sighup(models, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(models["fp32"], path)
    with running("--model", path, "--threads", 1) as (process, port):
        shutil.copy(models["int8"], tmp_path / "new.onnx")
        os.replace(tmp_path / "new.onnx", path)
        assert json.loads(ask(port, "GET", "/healthz")[1])["precision"] == "fp32"
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 30
        while json.loads(ask(port, "GET", "/healthz")[1])["precision"] != "int8":
            assert time.monotonic() < end
            time.sleep(0.05)


def test_servers_that_do_not_answer(tmp_path):
    """One that was killed is not waited for; one that lives and does nothing is, but not for ever."""
    (tmp_path / "servers").mkdir()
    (tmp_path / "servers/1.json").write_text(json.dumps({"url": "x", "version": "0001-a", "failed": {}}))
    assert wait_for_servers(tmp_path, "0002-a") == []
    registration = Registration(tmp_path, "http://y")
    with contextlib.ExitStack() as stack:
        stack.callback(registration.remove)
        registration.tell("0001-a")
        (state,) = wait_for_servers(tmp_path, "0002-a", limit_s=0.2)
        assert state == ServerState("http://y", "0001-a", "has not switched to it yet")
        registration.tell("0001-a", failed={"0002-a": "no memory"})
        assert wait_for_servers(tmp_path, "0002-a")[0].error == "no memory"
    assert list((tmp_path / "servers").iterdir()) == []


def test_servers_of_one_process_id_have_an_entry_each(tmp_path):
    """In containers that share a store, servers may have the same process ID."""
    first, second = Registration(tmp_path, "http://x"), Registration(tmp_path, "http://y")
    first.tell("0001-a")
    second.tell("0002-a")
    found = wait_for_servers(tmp_path, "0002-a", limit_s=0)
    assert sorted((state.url, state.error) for state in found) == [
        ("http://x", "has not switched to it yet"),
        ("http://y", None),
    ]
    first.remove()
    second.remove()
    assert list((tmp_path / "servers").iterdir()) == []
