"""Files: written whole or not at all, hashed, never overwritten unasked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from slimdeploy.toolchain import artifacts, file_kinds
from slimdeploy.toolchain.errors import SlimdeployError


def test_written_files_have_the_content_and_the_usual_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "x"
    artifacts.write_bytes(path, b"one")
    artifacts.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_linked_file_is_the_same_until_one_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr(
            os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no hard links here"))
        )
    source, linked = tmp_path / "source", tmp_path / "folder" / "linked"
    source.write_text("one")
    for _ in range(2):  # the second time over the first
        artifacts.link(source, linked)
    assert linked.read_text() == "one"
    assert (linked.stat().st_ino == source.stat().st_ino) == hard_links
    artifacts.write_bytes(source, b"two")
    assert linked.read_text() == "one"
    assert list(linked.parent.iterdir()) == [linked]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write() -> None:
        with artifacts.atomic_file(path) as file:
            file.write(b"half of the new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
from slimdeploy.toolchain import artifacts
for i in range(100_000):
    artifacts.write_bytes(sys.argv[1], bytes([i % 256]) * 200_000)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    from processes import process_environment

    path = tmp_path / "x"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=process_environment())
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    content = path.read_bytes()
    assert len(content) == 200_000
    assert len(set(content)) == 1


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "x"
    with pytest.raises(
        SlimdeployError, match=f"^cannot write {re.escape(str(path))}: (Not a directory|File exists)$"
    ):
        artifacts.write_bytes(path, b"")


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for write in (
        lambda: artifacts.write_bytes(path, b""),
        lambda: artifacts.check_output(path, force=True),
    ):
        with pytest.raises(SlimdeployError, match=r"cannot write .*pipe: it is not a regular file$"):
            write()
    assert path.is_fifo()


def test_all_caches_have_one_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIMDEPLOY_CACHE", "/own")
    assert artifacts.cache_folder("kernels") == Path("/own/kernels")
    monkeypatch.delenv("SLIMDEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert artifacts.cache_folder("kernels") == Path("/xdg/slimdeploy/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert artifacts.cache_folder("kernels") == Path.home() / ".cache/slimdeploy/kernels"


def test_a_folder_left_by_a_killed_process_is_removed_and_one_in_use_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "net.onnx"
    left = tmp_path / ".net.onnx.killed.tmp"
    left.mkdir()
    (left / "candidate.onnx").touch()
    with artifacts.folder_beside(output) as folder:
        artifacts.remove_leftovers(output)
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())


def test_json_round_trip_and_what_is_not_json(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "x.json", {"a": [1, "é"]})
    assert artifacts.read_json(tmp_path / "x.json", "list") == {"a": [1, "é"]}
    with pytest.raises(SlimdeployError, match=f"^no recipe at {tmp_path}/none$"):
        artifacts.read_json(tmp_path / "none", "recipe")
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(SlimdeployError, match=f"^{tmp_path}/y.json is not a readable record: Expecting"):
        artifacts.read_json(tmp_path / "y.json", "record")


def test_json_holds_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    artifacts.write_json(path, {"loss": float("nan"), "lr": [1.5, float("inf")], "n": (1, None)})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "loss": None, "lr": [1.5, None], "n": [1, None],
    }  # fmt: skip
    path.write_text('{"old": [NaN, -Infinity, 1e999, 0.5]}')  # what older versions wrote
    assert artifacts.read_json(path, "result") == {"old": [None, None, None, 0.5]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x81", "is not a readable list: not UTF-8 text (byte 0)"),
        (b'{"a": "\xff"}', "is not a readable list: not UTF-8 text (byte 7)"),
        (b"[" * 100_000, "is not a readable list: nested too deeply"),
        (b"[" * 50 + b"]" * 50, "is not a readable list: nested too deeply (maximum 32 levels)"),
        (b"1" * 5000, "is not a readable list: Exceeds the limit"),
        (b"", "is not a readable list: Expecting value"),
    ],
)
def test_every_unreadable_document_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(SlimdeployError) as refused:
        artifacts.read_json(path, "list")
    assert str(refused.value).startswith(f"{path} {message}")
    assert len(str(refused.value)) < len(str(path)) + 300


def test_documents_have_a_size_limit_and_may_begin_with_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert artifacts.read_json(path, "list") == {"a": 1}
    monkeypatch.setattr(artifacts, "MAX_TEXT_BYTES", 5)
    with pytest.raises(SlimdeployError, match=r"is too large for a list: maximum 0 MiB$"):
        artifacts.read_json(path, "list")


def test_sha256(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)  # more than is read at once
    (tmp_path / "x").write_bytes(content)
    assert artifacts.sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(SlimdeployError, match=f"^cannot read {tmp_path}/none: No such file or directory$"):
        artifacts.sha256_file(tmp_path / "none")


def test_outputs_are_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert artifacts.check_output(str(path)) == path
    path.touch()
    with pytest.raises(
        SlimdeployError, match=f"^{path} exists: pass force to replace it, or another output$"
    ):
        artifacts.check_output(path)
    assert artifacts.check_output(path, force=True) == path
    with pytest.raises(SlimdeployError, match=f"^{tmp_path} is a folder: name a file with output$"):
        artifacts.check_output(tmp_path, force=True)


def test_force_replaces_a_model_only_by_one_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(safetensors.numpy.save({"weight": np.zeros(1)}))
    assert artifacts.check_output(path, force=True, kind=file_kinds.CHECKPOINT) == path
    for kind in (file_kinds.ONNX, None):
        with pytest.raises(
            SlimdeployError, match=f"^{path} is a checkpoint, which force would lose: choose another output$"
        ):
            artifacts.check_output(path, force=True, kind=kind)


def test_sidecar_describes_its_file(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"abc")
    artifacts.write_sidecar(tmp_path / "net.onnx", {"precision": "fp32"})
    assert json.loads((tmp_path / "net.onnx.json").read_text()) == {
        "file": "net.onnx",
        "sha256": hashlib.sha256(b"abc").hexdigest(),
        "precision": "fp32",
    }


def test_a_file_that_is_not_the_one_described_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"abc")
    assert artifacts.read_sidecar(path) is None
    artifacts.write_sidecar(path, {"precision": "fp32"})
    described = artifacts.read_sidecar(path)
    assert described is not None
    assert described["precision"] == "fp32"
    path.write_bytes(b"abd")
    with pytest.raises(SlimdeployError, match=r"net\.onnx is damaged or was replaced: its SHA-256 "):
        artifacts.read_sidecar(path)
    artifacts.sidecar(path).write_text("[]")
    with pytest.raises(SlimdeployError, match=r"net\.onnx\.json is not the sidecar of"):
        artifacts.read_sidecar(path)
    artifacts.remove_sidecar(path)
    assert artifacts.read_sidecar(path) is None
