"""Locks hold between processes, name their holder, and go with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slimdeploy.toolchain.artifacts import atomic_file, remove_leftovers
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import exclusive, is_held, lock_file

HOLD = """
import sys
from pathlib import Path
from slimdeploy.toolchain.locks import exclusive
with exclusive(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""

READ_OR_WRITE = """
import sys
from pathlib import Path
from slimdeploy.toolchain import locks
locks._log = lambda message: print(message, flush=True)
with locks.readers_and_writer(Path(sys.argv[1]), alone=sys.argv[2] == "True", waiting="waits"):
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["folder", "file.onnx"])
def test_a_second_process_is_refused_by_one_line_that_names_the_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    with held_elsewhere(path) as process:
        assert is_held(path)
        expected = f"the run is in use by process {process.pid}: wait for it to end"
        with pytest.raises(SlimdeployError, match=f"^{expected}$"), exclusive(path, "the run"):
            pytest.fail("two processes hold the lock")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_held(path)
        with exclusive(path, "the run"):
            assert is_held(path)
    assert not is_held(path)
    assert not lock_file(path).exists(), "nothing is left behind"


def test_waiting_is_said_and_ends_with_the_holder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with held_elsewhere(tmp_path) as process:
        timer = threading.Timer(0.3, process.kill)
        timer.start()
        with exclusive(tmp_path, "the run", waiting="waiting for it"):
            assert process.wait() == -signal.SIGKILL
    assert capsys.readouterr().err == "waiting for it\n"


def test_where_no_lock_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SlimdeployError, match="cannot write"), exclusive(tmp_path / "file" / "x", "x"):
        pass


def test_readers_hold_a_lock_together_and_a_writer_alone(tmp_path: Path) -> None:
    file = tmp_path / "machine.sqlite"

    @contextmanager
    def start(alone: bool) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-c", READ_OR_WRITE, str(file), str(alone)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield process

    with start(alone=False) as first, start(alone=False) as second:
        assert [first.stdout.readline(), second.stdout.readline()] == ["in\n", "in\n"]  # both at once
        with start(alone=True) as writer:
            assert writer.stdout.readline() == "waits\n"
            first.kill()
            second.communicate()
            assert writer.stdout.readline() == "in\n"
            with start(alone=False) as third:
                assert third.stdout.readline() == "waits\n"
                writer.communicate()
                assert third.stdout.readline() == "in\n"
                third.communicate()


WRITE = """
import sys
from pathlib import Path
from slimdeploy.toolchain.artifacts import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_temporary_file_is_removed_once_its_writer_is_killed(tmp_path: Path) -> None:
    output = tmp_path / "net.onnx"
    command = [sys.executable, "-c", WRITE, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        (temporary,) = tmp_path.iterdir()
        remove_leftovers(output)
        assert temporary.exists(), "it is being written"
        process.kill()
    remove_leftovers(output)
    assert not temporary.exists()


def test_threads_of_one_process_keep_each_others_temporary_files(tmp_path: Path) -> None:
    output = tmp_path / "net.onnx"
    with atomic_file(output) as file:
        thread = threading.Thread(target=remove_leftovers, args=(output,))
        thread.start()
        thread.join()
        file.write(b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    assert output.read_bytes() == b"whole"
